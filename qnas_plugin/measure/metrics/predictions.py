"""What a model predicts, read from its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import UsageError
from qnas_plugin.measure.metrics.metric import Floats, Outputs, Scores

OWN = "give a metric of yours with --metric module:function"


def predictions(outputs: Outputs, *, names: bool = False) -> dict[str, npt.NDArray[Any]]:
    """What each output predicts: ``logits`` first, then the others in their order.

    That of floats ``(b, ..., classes)`` is the argmax over the last axis; integers and names are predictions as they
    are.

    Args:
        outputs: Of a run.
        names: Whether names are asked for, or numbers.

    Raises:
        UsageError: No output predicts anything of this kind.
    """
    arrays = ordered(outputs)
    found = {}
    for name, values in arrays.items():
        if values.dtype.kind == "f" and values.ndim > 1 and values.shape[-1] > 1 and not names:
            found[name] = values.argmax(axis=-1)
        elif values.dtype.kind in ("OUS" if names else "iub"):
            found[name] = values
    if not found and not names:
        raise UsageError(f"{_shapes(arrays)}; classes need (examples, ..., classes) with two or more, {OWN}")
    return found


def fitting(outputs: Outputs, labels: npt.NDArray[Any]) -> tuple[str, npt.NDArray[Any]]:
    """The first output that has a prediction for each of the labels ``(b, ...)``, and these predictions in that shape.

    Raises:
        UsageError: There is none, or labels cannot be predicted by it.
    """
    names = labels.dtype.kind not in "biuf"
    found = predictions(outputs, names=names)
    for name, predicted in found.items():
        shaped = as_shape(predicted, labels.shape)
        if shaped is not None:
            _check_labels(labels, outputs[name], name)
            return name, shaped
    if names:
        raise UsageError(
            f"the labels are names, like {str(labels.flat[0])!r}, and no output of the model is one for each; give the "
            "numbers of classes, or a metric of yours with --metric module:function"
        )
    name, predicted = next(iter(found.items()))
    raise UsageError(
        f"the output '{name}' has {predicted.shape} predictions and there are labels {labels.shape}; they must be "
        "as many: give a metric of yours with --metric module:function"
    )


def label_probability(outputs: Outputs, labels: npt.NDArray[Any]) -> Scores | None:
    """The probability of each example's labels ``(b, ...)``, their mean ``(b,)``; 0 for a label that is no class.

    The softmax over the last axis of the output, or its values where they are probabilities already. None where no
    output has a number for each class, or labels are no whole numbers.
    """
    if labels.dtype.kind not in "iub":
        return None
    classes = {name: found for name, found in predictions(outputs).items() if outputs[name].dtype.kind == "f"}
    shaped = [name for name, found in classes.items() if as_shape(found, labels.shape) is not None]
    if not shaped:
        return None
    values = outputs[shaped[0]].astype(np.float64)
    if not are_probabilities(values):
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        values /= values.sum(axis=-1, keepdims=True)
    numbers = labels.reshape(values.shape[:-1])
    known = (numbers >= 0) & (numbers < values.shape[-1])
    chosen = np.take_along_axis(values, np.where(known, numbers, 0).astype(np.int64)[..., None], axis=-1)[..., 0]
    return np.asarray(np.where(known, chosen, 0.0).reshape(len(labels), -1).mean(axis=1))


def are_probabilities(values: Floats) -> bool:
    """Whether the last axis holds probabilities, not logits."""
    return bool((values >= 0).all() and np.allclose(values.sum(axis=-1), 1.0, atol=1e-3))


def with_class_axis(outputs: Outputs, shape: tuple[int, ...], *, first: bool) -> tuple[str, Floats]:
    """The first output of floats that has a number for each class beside the axes of labels, its classes moved last.

    Args:
        outputs: Of a run.
        shape: Of the labels.
        first: Whether the axis behind the examples, ``(b, classes, h, w)``, is tried before the last one.

    Raises:
        UsageError: There is none.
    """
    arrays = ordered(outputs)
    for name, values in arrays.items():
        if values.dtype.kind != "f" or values.ndim != len(shape) + 1:
            continue
        for axis in (1, -1) if first else (-1, 1):
            moved = np.moveaxis(values, axis, -1)
            if moved.shape[:-1] == shape and moved.shape[-1] > 1:
                return name, moved.astype(np.float64)
    raise UsageError(
        f"{_shapes(arrays)}; labels {shape} need an output of floats of that shape and an axis of two or more classes "
        f"behind the examples or last: {OWN}"
    )


def as_shape(predicted: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    """Predictions in the shape of the labels, where they differ by axes of 1 alone, the examples apart."""
    if predicted.shape == shape:
        return predicted
    apart = shape[0] == 1 or predicted.shape[:1] == shape[:1]
    alike = [size for size in predicted.shape if size != 1] == [size for size in shape if size != 1]
    return predicted.reshape(shape) if apart and alike else None


def ordered(outputs: Outputs) -> dict[str, npt.NDArray[Any]]:
    """The outputs that are arrays, ``logits`` first."""
    items = sorted(outputs.items(), key=lambda item: item[0] != "logits")
    return {name: values for name, values in items if isinstance(values, np.ndarray)}


def _shapes(arrays: Outputs) -> str:
    shown = ", ".join(f"the output '{name}' has shape {values.shape}" for name, values in arrays.items())
    return shown or "no output of the model is an array"


def _check_labels(labels: npt.NDArray[Any], output: npt.NDArray[Any], name: str) -> None:
    """Checks that labels can be predicted; a negative one may stand for none.

    Raises:
        UsageError: One is no whole number, or beyond the last class.
    """
    if labels.dtype.kind == "f" and not (labels == np.round(labels)).all():
        odd = labels[labels != np.round(labels)][0]
        raise UsageError(f"the labels are no numbers of classes, like {odd}; {OWN}")
    if output.dtype.kind == "f" and labels.max(initial=0) >= output.shape[-1]:
        raise UsageError(
            f"the label {labels.max()} is no class of the output '{name}', which has {output.shape[-1]}, counted from 0"
        )
