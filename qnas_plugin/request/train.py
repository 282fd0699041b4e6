"""The options of ``train``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from qnas_plugin.request.options import Checkpoint, Overwrite, Request, Seed, Shown, Supernet, numbers

_Whole = Annotated[tuple[int, ...], Shown("What", "the family's own", "N,N,...")]
_Relative = Annotated[tuple[float, ...], Shown("What", "the family's own", "X,X,...")]


class TrainRequest(Request):
    """A training; see ``qnas_plugin.training.instatune.Settings`` for what each number does."""

    supernet: Supernet[str]
    checkpoint: Checkpoint[str]
    depth: _Whole = Field((), description="Choices for the number of layers, like 3,4,5,6.")
    heads: _Whole = Field((), description="Choices for the heads of a layer.")
    ffn: _Whole = Field((), description="Choices for the feed-forward width of a layer.")
    kernel: _Whole = Field((), description="Choices for the size of kernels, like 3,5,7.")
    expand: _Relative = Field((), description="Choices for the relative width inside a block.")
    width: _Relative = Field((), description="Choices for the relative width of a stage.")
    epochs: Annotated[int, Shown("Training")] = Field(3, ge=1, description="Passes over the training data.")
    batch_size: Annotated[int, Shown("Training")] = Field(32, ge=1, description="Examples a step in each process.")
    learning_rate: Annotated[float, Shown("Training")] = Field(5e-5, gt=0, description="Highest learning rate.")
    weight_decay: Annotated[float, Shown("Training")] = Field(0.01, ge=0, description="Weight decay of AdamW.")
    warmup: Annotated[float, Shown("Training")] = Field(
        0.06, ge=0, lt=1, description="Share of the steps in which the learning rate rises."
    )
    subnets: Annotated[Literal["none", "random", "sandwich"], Shown("Training")] = Field(
        "random", description="Trained in each step beside the whole supernet; sandwich is random and smallest."
    )
    shrinking: Annotated[float, Shown("Training")] = Field(
        0.0, ge=0, le=1, description="Share of the steps over which subnets may become smaller, step by step."
    )
    task_weight: Annotated[float, Shown("Training")] = Field(
        0.3, ge=0, le=1, description="Share of cross-entropy in the loss; distillation has the rest."
    )
    teacher: Annotated[str | None, Shown("Training")] = Field(
        None, description="Fine-tuned checkpoint of the same family and classes to distil from."
    )
    augment: Annotated[bool, Shown("Training")] = Field(
        False, description="Mirror and move images at random, by an eighth at most."
    )
    arithmetic: Annotated[Literal["auto", "bf16", "fp32"], Shown("Training")] = Field(
        "auto", description="Of the training; auto is bf16 where the CPU multiplies it in hardware."
    )
    seed: Annotated[Seed, Shown("Training")] = 0
    overwrite: Overwrite = False

    @field_validator("depth", "heads", "ffn", "kernel", "expand", "width", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: Any) -> Any:
        return numbers(value, cls.option(info.field_name))
