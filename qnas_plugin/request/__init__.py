"""What a user asks for, checked: one model a command, whether it came from options, a TOML file, Python or a host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from qnas_plugin import registry
from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import UnknownNameError, UsageError, quoted
from qnas_plugin.files import write_bytes
from qnas_plugin.files.doors import read_toml
from qnas_plugin.hardware import user_folder
from qnas_plugin.objectives import Limit, check_objectives, parse_limit
from qnas_plugin.quantizers.formats import Precisions, check_choices
from qnas_plugin.request.model_name import resolve
from qnas_plugin.study import storage_url


def _storage(storage: str) -> str:
    storage_url.check(storage)
    return storage


class Options(BaseModel):
    """Options of a command, from wherever they come."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def build(cls, options: Mapping[str, Any], config: Path | None = None) -> Self:
        """Merges a TOML file with options, which win, and checks the result.

        Raises:
            UsageError: The file cannot be read, or a name or value in either is wrong.
        """
        values = read_toml(config, UsageError, f"cannot read --config {config} as TOML") if config else {}
        unknown = [name for name in values if name not in cls.model_fields]
        if unknown:
            where = UnknownNameError("option", f"{unknown[0]:.80}", cls.model_fields)
            raise UsageError(f"{config}: {where}")
        values |= {name: value for name, value in options.items() if value is not None}
        for name, value in values.items():
            _check_value(name, value)
        try:
            return cls(**values)
        except ValidationError as error:
            raise _first_error(error) from None


class Request(Options):
    """What all commands that need data share.

    Args:
        task: The registered task.
        data: The task's data: files, a folder, or a name that the task knows.
        out: The folder for the results.
        max_length: Texts are cut after this many tokens; None leaves it to the tokenizer.
        calibration_samples: Training examples for the ranges of static quantization.
        search_samples: Training examples held out for the accuracy that steers the search.
        selection_samples: Training examples held out to choose the recommended member on, which nothing is searched on;
            None is as many as ``search_samples``. Where there are too few for both, both shrink alike.
        seed: Of every random choice.
    """

    task: str
    data: str
    out: Path
    max_length: int | None = Field(None, ge=2)
    calibration_samples: int = Field(128, ge=1)
    search_samples: int = Field(2000, ge=1)
    selection_samples: int | None = Field(None, ge=0)
    seed: int = Field(0, ge=0)

    @field_validator("supernet", "task", check_fields=False)
    @classmethod
    def _known(cls, name: str | None, info: Any) -> str | None:
        if name is None:
            return None
        registry.check("supernets" if info.field_name == "supernet" else "tasks", name)
        return name.replace("-", "_")

    @property
    def sizes(self) -> SplitSizes:
        """How many examples each part of the data gets."""
        return SplitSizes(self.calibration_samples, self.search_samples, self.selection_samples)

    def write(self, path: Path) -> None:
        """Writes the request as TOML that ``--config`` takes."""
        write_bytes(path, tomli_w.dumps(self.model_dump(mode="json", exclude_none=True)).encode())


class TrainRequest(Request):
    """A training; see ``qnas_plugin.training.instatune.Settings`` for what each number does.

    Args:
        supernet: The registered family.
        checkpoint: A Hugging Face name or folder, or a folder that ``qnas train`` wrote.
        depth, heads, ffn, kernel, expand, width: Choices of the elastic dimensions; empty ones are the family's own.
        teacher: A checkpoint of the same architecture, fine-tuned on the same classes.
        arithmetic: ``auto`` is bfloat16 where the CPU multiplies it in hardware, else float32.
        overwrite: Whether to replace a model that another training left in ``out``.
    """

    supernet: str
    checkpoint: str
    depth: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    ffn: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    expand: tuple[float, ...] = ()
    width: tuple[float, ...] = ()
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.06, ge=0, lt=1)
    subnets: Literal["none", "random", "sandwich"] = "random"
    shrinking: float = Field(0.0, ge=0, le=1)
    task_weight: float = Field(0.3, ge=0, le=1)
    teacher: str | None = None
    augment: bool = False
    arithmetic: Literal["auto", "bf16", "fp32"] = "auto"
    overwrite: bool = False


class ProfileRequest(Options):
    """A latency table to be made on this machine.

    Args:
        supernet: The registered family.
        checkpoint: As in ``TrainRequest``; a folder with a configuration and no weights is enough.
        hardware: The SKU's hardware profile, or ``auto`` for the one that fits this machine.
        threads, batch, seq_len, resolution: Replace the profile's runtime setting; None keeps it.
        budget: How long to measure, ``90s``, ``10m`` or ``1h``; time of an earlier, stopped run included.
        out: The folder of latency tables; the default is the user's own.
        seed: Of the choice of networks.
        insist: Whether to make a table on a machine that is not the named SKU; the table says so.
        overwrite: Whether to replace a table that other measurements made.
    """

    supernet: str
    checkpoint: str
    hardware: str = "auto"
    threads: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    seq_len: int | None = Field(None, ge=2)
    resolution: int | None = Field(None, ge=1)
    budget: str = "10m"
    out: Path = Field(default_factory=lambda: user_folder("latency_tables"))
    seed: int = Field(0, ge=0)
    insist: bool = False
    overwrite: bool = False

    @field_validator("supernet")
    @classmethod
    def _known(cls, name: str) -> str:
        registry.check("supernets", name)
        return name.replace("-", "_")

    @field_validator("budget")
    @classmethod
    def _budget(cls, text: str) -> str:
        parse_duration(text)
        return text


class TuneRequest(Request):
    """A search of a supernet, or of one ONNX model.

    Args:
        supernet, checkpoint: As in ``TrainRequest``.
        model: An ONNX file instead, or a folder with one: the space is the precision of its layers. It changes what
            other options are when not given: the task is ``arrays``, and ``against`` is ``fp32``. Or a Hugging Face
            model, which becomes the checkpoint of the supernet of its type.
        metric: What stands as accuracy, see ``qnas_plugin.measure.metrics``; None leaves it to the task.
        precision: The choices of each precision group, see ``quantizers.formats``; empty leaves them to the network.
        keep_fp32: Patterns of layers of the model, or of groups of the supernet, that stay FP32.
        group: Groups of the model's layers, each ``NAME=PATTERN``.
        max_groups: How many groups the model may have; neighbours are joined until there are no more.
        hardware: A hardware profile, or ``auto`` for the one that fits this machine.
        threads, batch, seq_len: Replace the profile's runtime setting; None keeps it.
        objectives: Two or three metrics.
        limits: Bounds that the recommended member must keep, like ``latency_ms<=5``.
        latency: Whether the search measures latencies here, or takes them from the SKU's latency table.
        table: A file instead of the table that is found.
        insist: Whether to take a table that does not fit; the result says so.
        against: Whether that is the full network in INT8 or in FP32, in what follows.
        max_accuracy_drop: How much accuracy the recommended member may lose against it.
        confidence: With which the selection part of the data must show that it loses no more.
        algorithm: The registered search algorithm.
        trials: Candidates to evaluate in all, those of an earlier, stopped run included.
        population: Candidates of a generation; LINAS learns anew ten times in it.
        storage: An Optuna storage URL, written without its password; None is the journal file in ``out``.
        study_name: The study's name in a storage of several; None is that of the folder, when it was begun.
        workers: Processes of this machine that evaluate; None evaluates in this one.
        cluster: The address of a Dask scheduler whose workers evaluate, instead.
    """

    supernet: str | None = None
    checkpoint: str | None = None
    model: str | None = None
    metric: str | None = None
    precision: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    max_groups: int = Field(60, ge=1)
    hardware: str = "auto"
    threads: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    seq_len: int | None = Field(None, ge=2)
    objectives: tuple[str, ...] = ("accuracy", "latency_ms")
    limits: tuple[str, ...] = ()
    latency: Literal["measured", "table"] = "measured"
    table: Path | None = None
    insist: bool = False
    against: Literal["int8", "fp32"] = "int8"
    max_accuracy_drop: float = Field(0.01, ge=0, le=1)
    confidence: float = Field(0.9, ge=0.5, lt=1)
    algorithm: str = "linas"
    trials: int = Field(250, ge=1)
    population: int = Field(50, ge=4)
    storage: Annotated[str, PlainSerializer(storage_url.without_password), AfterValidator(_storage)] | None = None
    study_name: str | None = None
    workers: int | None = Field(None, ge=1)
    cluster: str | None = Field(None, pattern=r"^[a-z]+://.+$")

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
            for name, value in (("supernet", self.supernet), ("checkpoint", self.checkpoint)):
                if value is None:
                    raise UsageError(f"--{name} is missing, and so is --model; see: qnas --help")
            if self.group:
                raise UsageError("--group is for --model; the groups of a supernet are its own")
        elif self.latency == "table":
            raise UsageError("--latency table is for supernets; what a --model takes is measured, leave it out")
        return self

    @field_validator("precision")
    @classmethod
    def _precision(cls, names: tuple[str, ...]) -> tuple[str, ...]:
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
        return check_objectives(names)

    @field_validator("limits")
    @classmethod
    def _limits(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(parse_limit(text)) for text in texts)

    @field_validator("algorithm")
    @classmethod
    def _algorithm(cls, name: str) -> str:
        registry.check("search", name)
        return name.replace("-", "_")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.workers is not None and self.cluster is not None:
            raise UsageError("give --workers or --cluster, not both; a cluster has workers of its own")
        return self

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.latency == "measured" and (self.table is not None or self.insist):
            raise UsageError("--table and --insist are for --latency table")
        for limit in self.parsed_limits:
            if limit.metric not in self.objectives and limit.metric != "size_mb":
                raise UsageError(f"the limit '{limit}' needs '{limit.metric}' among the objectives")
        return self

    @property
    def source(self) -> str:
        """The checkpoint, or the file of the model."""
        source = self.model or self.checkpoint
        assert source is not None
        return source

    @property
    def precisions(self) -> Precisions:
        """What is said of the precision policy."""
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
        return tuple(parse_limit(text) for text in self.limits)


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``10m`` or ``1.5h``.

    Raises:
        UsageError: The text has another form.
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smh])", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"cannot read the duration '{text}'; write it like 90s, 10m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _check_value(name: str, value: Any) -> None:
    """Keeps out what no file can be named and no request can be written with.

    Raises:
        UsageError: A text has a NUL character or is not Unicode, or a number is longer than 64 bits.
    """
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, str | Path) and re.search("[\0\ud800-\udfff]", str(item)):
            raise UsageError(f"{_option(name)} {quoted(str(item))} has a NUL, or is not in UTF-8")
        if isinstance(item, int) and abs(item) >= 2**63:
            raise UsageError(f"{_option(name)} is a number of more than 64 bits")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _first_error(error: ValidationError) -> UsageError:
    errors = error.errors()
    for cause in (each.get("ctx", {}).get("error") for each in errors):
        if isinstance(cause, UsageError):  # what is wrong says more than what is missing
            return cause
    first = errors[0]
    name = _option(".".join(str(part) for part in first["loc"]))
    if first["type"] == "missing":
        return UsageError(f"{name} is missing; see: qnas --help")
    return UsageError(f"{name} {quoted(first['input'])}: {first['msg']}")
