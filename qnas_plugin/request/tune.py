"""The options of ``tune``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from qnas_plugin.errors import MissingOptionsError, UsageError, quoted
from qnas_plugin.quantizers import DEFAULT
from qnas_plugin.request.model_name import resolve
from qnas_plugin.request.options import (
    Checkpoint,
    Insist,
    Request,
    RunSize,
    Seed,
    Shown,
    Supernet,
    Table,
    Threads,
)
from qnas_plugin.study import storage_url

if TYPE_CHECKING:
    from qnas_plugin.objectives import Limit
    from qnas_plugin.quantizers.formats import Precisions


class TuneRequest(Request):
    """A search of a supernet, or of one ONNX model."""

    task: Annotated[str, Shown("Data")] = Field(
        description="Task, see: qnas show tasks. For --model it is arrays when not given."
    )
    supernet: Supernet[str | None] = None
    checkpoint: Checkpoint[str | None] = None
    model: Annotated[str | None, Shown("What", metavar="MODEL", names=("-m", "--model"))] = Field(
        None,
        description="In place of both: an ONNX file, or a folder with one, whose layers' precision is searched; or a "
        "Hugging Face model, whose supernet is found by its type.",
    )
    metric: Annotated[str | None, Shown("Data", "accuracy with labels, else cosine")] = Field(
        None,
        description="What stands as accuracy: accuracy, f1, miou, spearman, perplexity, agreement or cosine with the "
        "FP32 model, or module:function.",
    )
    precision: Annotated[tuple[str, ...], Shown("What", "int8, fp32", "FORMAT")] = Field(
        (), description="Choice of each group, see: qnas show precisions."
    )
    keep_fp32: Annotated[tuple[str, ...], Shown("What", metavar="PATTERN")] = Field(
        (), description="What stays FP32: layers of the model, or groups of the supernet."
    )
    group: Annotated[tuple[str, ...], Shown("What", metavar="NAME=PATTERN")] = Field(
        (), description="Layers of the model that are decided together."
    )
    max_groups: Annotated[int, Shown("What")] = Field(
        60, ge=1, description="Groups of the model's layers; where there are more, neighbours are joined."
    )
    hardware: Annotated[str, Shown("Hardware")] = Field(
        "auto", description="Hardware profile, or auto for this machine's."
    )
    threads: Threads = None
    batch: RunSize = None
    seq_len: Annotated[int | None, Shown("Hardware", "the profile's")] = Field(
        None, ge=2, description="Tokens that latencies are measured at."
    )
    objectives: Annotated[
        tuple[str, ...], Shown("Search", "accuracy, latency_ms", "METRIC", names=("--objective",))
    ] = Field(
        ("accuracy", "latency_ms"), description="Two or three of accuracy, latency_ms, size_mb, gmacs and gbitops."
    )
    limits: Annotated[tuple[str, ...], Shown("Search", metavar="BOUND", names=("--limit",))] = Field(
        (), description="Bound for the recommended member, like 'latency_ms<=5'."
    )
    latency: Annotated[Literal["measured", "table"], Shown("Hardware")] = Field(
        "measured", description="Measured here, or from the SKU's latency table, also of a machine elsewhere."
    )
    table: Table = None
    insist: Insist = False
    against: Annotated[Literal["int8", "fp32"], Shown("Search", "int8; fp32 for --model")] = Field(
        "int8", description="The full network that results are compared with."
    )
    max_accuracy_drop: Annotated[float, Shown("Search")] = Field(
        0.01, ge=0, description="Accuracy, between 0 and 1, that the recommended member may lose against it."
    )
    confidence: Annotated[float, Shown("Search")] = Field(
        0.9, ge=0.5, lt=1, description="With which the selection examples must show that it loses no more."
    )
    quantizer: Annotated[str, Shown("Search")] = Field(
        DEFAULT, description="What quantizes, see: qnas show quantizers."
    )
    algorithm: Annotated[str, Shown("Search")] = Field(
        "linas", description="Search algorithm, see: qnas show algorithms."
    )
    trials: Annotated[int, Shown("Search")] = Field(
        250, ge=1, description="Candidates to evaluate, those of a stopped run included."
    )
    population: Annotated[int, Shown("Search")] = Field(
        50, ge=4, description="Candidates of a generation; linas learns anew ten times in it."
    )
    storage: Annotated[str | None, Shown("Output", "OUT/study.journal", "URL")] = Field(
        None, description="Optuna storage URL; its password is not written."
    )
    study_name: Annotated[str | None, Shown("Output", "the folder's")] = Field(
        None, description="Name of the study in a storage of several."
    )
    workers: Annotated[int | None, Shown("Search", "this one alone")] = Field(
        None, ge=1, description="Processes of this machine that evaluate."
    )
    cluster: Annotated[str | None, Shown("Search", metavar="ADDRESS")] = Field(
        None, description="Dask scheduler whose workers evaluate, like tcp://host:8786."
    )
    seed: Seed = 0

    @classmethod
    def missing(cls, given: Mapping[str, Any]) -> list[str]:
        """The options that must be given and are not; for a model that is neither a network nor a task."""
        found = super().missing(given)
        if given.get("model") is not None:
            return [option for option in found if option != "--task"]
        network = [cls.option(name) for name in ("supernet", "checkpoint") if given.get(name) is None]
        return [*(network if len(network) < 2 else ["--supernet and --checkpoint (or --model)"]), *found]

    @model_validator(mode="before")
    @classmethod
    def _of_a_model(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(values.get("model"), str) or not values["model"]:
            return values
        if values.get("supernet") or values.get("checkpoint"):
            raise UsageError("give --model, or --supernet and --checkpoint, not both")
        named = resolve(values["model"])
        values = {name: value for name, value in values.items() if name != "model"} | named
        return {"task": "arrays", "against": "fp32"} | values if "model" in named else values

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if self.model is None:
            if missing := self.missing(dict(self)):
                raise MissingOptionsError(missing)
            if self.group:
                raise UsageError("--group is for --model; the groups of a supernet are its own")
        elif self.latency == "table":
            raise UsageError("--latency table is for supernets; what a --model takes is measured, leave it out")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the quantizer where it is what results had before there were others."""
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if (name, value) != ("quantizer", DEFAULT)}

    @field_validator("precision")
    @classmethod
    def _precision(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from qnas_plugin.quantizers.formats import check_choices

        return check_choices(names) if names else ()

    @field_validator("group")
    @classmethod
    def _group(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            name, equals, pattern = text.partition("=")
            if not (name and equals and pattern):
                raise UsageError(f"cannot read the group '{text}'; write it like 'head=*/head/*'")
        names = [text.partition("=")[0] for text in texts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"--group names '{twice}' twice; give each group one name and one pattern")
        return texts

    @field_validator("objectives")
    @classmethod
    def _objectives(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from qnas_plugin.objectives import check_objectives

        return check_objectives(names)

    @field_validator("limits")
    @classmethod
    def _limits(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        from qnas_plugin.objectives import parse_limit

        limits = [parse_limit(text) for text in texts]
        for limit in limits:
            beyond = limit.metric == "accuracy" and limit.comparison == ">=" and limit.value > 1
            if beyond and _is_share(info.data.get("metric")):
                meant = f"; did you mean {limit.value / 100:g}?" if limit.value <= 100 else ""
                raise UsageError(f"the limit '{limit}': accuracy is between 0 and 1{meant}")
        return tuple(map(str, limits))

    @field_validator("max_accuracy_drop")
    @classmethod
    def _share(cls, value: float, info: ValidationInfo) -> float:
        if value > 1 and _is_share(info.data.get("metric")):
            meant = f"; for {value:g} points give {value / 100:g}" if value <= 100 else ""
            raise UsageError(f"--max-accuracy-drop {value:g}: accuracy is between 0 and 1{meant}")
        return value

    @field_validator("storage")
    @classmethod
    def _storage(cls, storage: str | None) -> str | None:
        if storage is not None:
            storage_url.check(storage)
        return storage

    @field_serializer("storage")
    def _without_password(self, storage: str | None) -> str | None:
        return None if storage is None else storage_url.without_password(storage)

    @field_validator("cluster")
    @classmethod
    def _cluster(cls, address: str | None) -> str | None:
        if address is not None and not re.fullmatch("[a-z]+://.+", address):
            raise UsageError(f"--cluster {quoted(address)}: write it like tcp://host:8786")
        return address

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.workers is not None and self.cluster is not None:
            raise UsageError("give --workers or --cluster, not both; a cluster has workers of its own")
        return self

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.latency == "measured" and (self.table is not None or self.insist):
            raise UsageError("--table and --insist are for --latency table")
        from qnas_plugin.objectives import COMPUTED

        for limit in self.parsed_limits:
            if limit.metric not in (*self.objectives, *COMPUTED):
                raise UsageError(f"the limit '{limit}' needs '{limit.metric}' among the objectives")
        return self

    @property
    def computes(self) -> tuple[str, ...]:
        """The objectives and limited metrics that follow from candidates alone."""
        from qnas_plugin.objectives import COMPUTED

        named = (*self.objectives, *(limit.metric for limit in self.parsed_limits))
        return tuple(name for name in COMPUTED if name in named)

    @property
    def source(self) -> str:
        """The checkpoint, or the file of the model."""
        source = self.model or self.checkpoint
        assert source is not None
        return source

    @property
    def precisions(self) -> Precisions:
        """What is said of the precision policy."""
        from qnas_plugin.quantizers.formats import Precisions

        groups = dict(text.split("=", 1) for text in self.group)
        return Precisions(self.precision, self.keep_fp32, groups, self.max_groups)

    @property
    def reference(self) -> str:
        """The baseline that the recommended member is compared with."""
        return f"largest-{self.against}"

    @property
    def varied(self) -> tuple[str, ...]:
        """What can make another search of this request on the same machine differ; often nothing."""
        found = []
        if self.latency == "measured":
            found.append("latencies are measured, and never the same twice")
        if self.cluster is not None:
            found.append("the workers of a cluster come and go")
        return tuple(found)

    @property
    def parsed_limits(self) -> tuple[Limit, ...]:
        """The limits as values."""
        from qnas_plugin.objectives import parse_limit

        return tuple(parse_limit(text) for text in self.limits)


def _is_share(metric: str | None) -> bool:
    """Whether a metric, the task's own where none is named, is known to lie between 0 and 1."""
    from qnas_plugin.measure.metrics import METRICS

    return metric is None or (metric in METRICS and METRICS[metric].points)
