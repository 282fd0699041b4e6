"""The search space as data: variables, candidates, and everything that every supernet needs done with them.

A space is a list of *variables*, each with its choices and, when it does not always exist, the value of an earlier
variable under which it does (layer 9's FFN width exists when ``depth`` is 10 or more). A *candidate* holds the values
of the active variables only, so two genotypes that mean the same network are one candidate with one key.

Algorithms work on *genotypes*: integer arrays of shape ``(n,)`` or ``(m, n)`` for ``n`` variables, each gene the index
of a choice. Canonical genotypes have 0 in place of every inactive gene.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import UsageError, quoted

Value = int | float | str
Genes = npt.NDArray[np.int64]
Features = npt.NDArray[np.float64]


_PREFIX = "precision."
"""What the names of precision variables begin with in stored studies."""


class Precision(StrEnum):
    """The number format of a precision group."""

    INT8 = "int8"
    FP32 = "fp32"


@dataclass(frozen=True)
class Condition:
    """A variable exists only while an earlier variable has one of these values."""

    variable: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Variable:
    """One searched decision.

    Args:
        name: Unique in its space.
        choices: What it can be, smallest first; at least one.
        kind: Whether it shapes the subnet or sets the precision of a group.
        when: The condition under which it exists; None means always.
        group: The group whose precision it sets; None is the one of its name, ``precision.<group>``.
        role: What of the group it sets; where weights and activations are apart, the format is that of both choices
            one after the other: ``w2`` and ``a4`` are ``w2a4``.
    """

    name: str
    choices: tuple[Value, ...]
    kind: Literal["architecture", "precision"] = "architecture"
    when: Condition | None = None
    group: str | None = None
    role: Literal["both", "weights", "activations"] = "both"

    def __post_init__(self) -> None:
        if self.kind == "precision" and self.group is None:
            object.__setattr__(self, "group", self.name.removeprefix(_PREFIX))

    @classmethod
    def precision(cls, group: str, choices: tuple[Value, ...], when: Condition | None = None) -> Variable:
        """The one that sets the format of a group, under the name that it is stored by."""
        return cls(f"{_PREFIX}{group}", choices, "precision", when, group)


@dataclass(frozen=True)
class Candidate(Mapping[str, Value]):
    """A subnet and its precision policy: the values of the active variables, in the order of the space.

    Made by ``SearchSpace.candidate`` or ``SearchSpace.decode``, which check it.
    """

    items_: tuple[tuple[str, Value], ...]
    _values: dict[str, Value] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_values", dict(self.items_))

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @cached_property
    def key(self) -> str:
        """Twelve hexadecimal digits, equal for equal candidates in every process and version."""
        text = json.dumps(self._values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class SearchSpace:
    """Variables in order, each after the one that its condition names.

    Raises:
        UsageError: A name is taken twice, a variable has no choices or a repeated one, or a condition names a later or
            unknown variable or a value that it does not have.
    """

    variables: tuple[Variable, ...]

    def __post_init__(self) -> None:
        seen: dict[str, Variable] = {}
        for variable in self.variables:
            name = variable.name
            if name in seen:
                raise UsageError(f"variable '{name}' stands twice in the search space")
            if not variable.choices or len(set(variable.choices)) != len(variable.choices):
                raise UsageError(f"variable '{name}' needs at least one choice and no repeats, got {variable.choices}")
            if variable.when is not None:
                parent = seen.get(variable.when.variable)
                if parent is None:
                    raise UsageError(
                        f"variable '{name}' depends on '{variable.when.variable}', which must stand before it"
                    )
                if not set(variable.when.values) <= set(parent.choices):
                    raise UsageError(f"variable '{name}' depends on values that '{parent.name}' does not have")
            seen[name] = variable
        for group, own in self._of_group.items():
            roles = [variable.role for variable in own]
            if sorted(roles) not in (["both"], ["activations", "weights"]) or len({v.when for v in own}) > 1:
                raise UsageError(
                    f"the precision of '{group}' needs one variable, or one of its weights and one of its activations "
                    f"under one condition; it has: {', '.join(roles)}"
                )

    def __len__(self) -> int:
        return len(self.variables)

    @cached_property
    def sizes(self) -> Genes:
        """The number of choices of each variable, shape ``(n,)``."""
        return np.array([len(variable.choices) for variable in self.variables], dtype=np.int64)

    @cached_property
    def index(self) -> dict[str, int]:
        """The position of each variable by name."""
        return {variable.name: i for i, variable in enumerate(self.variables)}

    @cached_property
    def _parents(self) -> list[tuple[int, npt.NDArray[np.bool_]] | None]:
        parents: list[tuple[int, npt.NDArray[np.bool_]] | None] = []
        for variable in self.variables:
            if variable.when is None:
                parents.append(None)
            else:
                parent = self.index[variable.when.variable]
                choices = self.variables[parent].choices
                parents.append((parent, np.array([choice in variable.when.values for choice in choices])))
        return parents

    def active(self, genes: Genes) -> npt.NDArray[np.bool_]:
        """Which variables exist in each genotype: ``(m, n)`` genes to ``(m, n)`` booleans."""
        active = np.ones(genes.shape, dtype=bool)
        for i, parent in enumerate(self._parents):
            if parent is not None:
                column, allowed = parent
                active[:, i] = active[:, column] & allowed[genes[:, column]]
        return active

    def canonical(self, genes: Genes) -> Genes:
        """``(m, n)`` genes with 0 in place of every inactive gene: equal rows are equal networks."""
        return np.where(self.active(genes), genes, 0)

    def candidate(self, values: Mapping[str, Value]) -> Candidate:
        """Checks values and drops those of inactive variables.

        Raises:
            UsageError: A name is unknown, a value is not among the choices, or an active variable is missing.
        """
        unknown = [name for name in values if name not in self.index]
        if unknown:
            raise UsageError(f"the search space has no variable {quoted(unknown[0])}; see it with: qnas show space")
        kept: dict[str, Value] = {}
        for variable in self.variables:
            when = variable.when
            if when is not None and kept.get(when.variable) not in when.values:
                continue
            if variable.name not in values:
                raise UsageError(f"the candidate has no value for '{variable.name}'; allowed: {list(variable.choices)}")
            value = values[variable.name]
            if isinstance(value, bool) or value not in variable.choices:
                raise UsageError(f"'{variable.name}' cannot be {quoted(value)}; allowed: {list(variable.choices)}")
            kept[variable.name] = variable.choices[variable.choices.index(value)]
        return Candidate(tuple(kept.items()))

    def encode(self, candidate: Candidate) -> Genes:
        """The canonical genotype ``(n,)`` of a candidate."""
        genes = np.zeros(len(self), dtype=np.int64)
        for name, value in candidate.items():
            genes[self.index[name]] = self.variables[self.index[name]].choices.index(value)
        return genes

    def decode(self, genes: Genes) -> Candidate:
        """The candidate of a genotype ``(n,)``, canonical or not."""
        active = self.active(genes[None, :])[0]
        return Candidate(
            tuple(
                (variable.name, variable.choices[gene])
                for variable, gene, exists in zip(self.variables, genes.tolist(), active.tolist(), strict=True)
                if exists
            )
        )

    def features(self, genes: Genes) -> Features:
        """One-hot features ``(m, sum of sizes)``; all zeros for an inactive variable."""
        offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        features = np.zeros((len(genes), int(offsets[-1])))
        rows, columns = np.nonzero(self.active(genes))
        features[rows, offsets[columns] + genes[rows, columns]] = 1.0
        return features

    def sample(self, count: int, rng: np.random.Generator) -> Genes:
        """``(count, n)`` canonical genotypes, each gene drawn uniformly."""
        return self.canonical(rng.integers(0, self.sizes, size=(count, len(self))))

    def mutate(self, genes: Genes, rng: np.random.Generator, probability: float) -> Genes:
        """Random reset: each gene of ``(m, n)`` moves to another of its choices with this probability."""
        hit = (rng.random(genes.shape) < probability) & (self.sizes > 1)
        shift = 1 + np.floor(rng.random(genes.shape) * np.maximum(self.sizes - 1, 1)).astype(np.int64)
        return np.where(hit, (genes + shift) % self.sizes, genes)

    def policy(self, candidate: Mapping[str, Value]) -> dict[str, str]:
        """The precision policy of a candidate: the groups that it has to the names of their formats."""
        return {group: _format(own, candidate) for group, own in self._of_group.items() if own[0].name in candidate}

    def with_policy(self, candidate: Candidate, policy: Mapping[str, str]) -> Candidate:
        """The candidate with another policy; groups that it lacks stay as they are.

        Raises:
            UsageError: A group cannot have the format.
        """
        values = dict(candidate)
        for group, own in self._of_group.items():
            if group not in policy or own[0].name not in candidate:
                continue
            for choices in itertools.product(*(variable.choices for variable in own)):
                chosen = {variable.name: choice for variable, choice in zip(own, choices, strict=True)}
                if _format(own, chosen) == policy[group]:
                    values |= chosen
                    break
            else:
                allowed = "; ".join(f"{list(variable.choices)}" for variable in own)
                raise UsageError(f"the group '{group}' cannot be {quoted(policy[group])}; allowed: {allowed}")
        return self.candidate(values)

    @cached_property
    def formats(self) -> Mapping[str, tuple[str, ...]]:
        """Precision group to the names of the formats that it can have."""
        return {group: tuple(dict.fromkeys(self._choices(group))) for group in self._of_group}

    def at(self, genes: Genes, group: str, format: str) -> npt.NDArray[np.bool_]:
        """In which canonical genotypes ``(m, n)`` a group exists in a format, ``(m,)``."""
        columns = [self.index[variable.name] for variable in self._of_group[group]]
        code = np.zeros(len(genes), dtype=np.int64)
        for i in columns:
            code = code * self.sizes[i] + genes[:, i]
        found = np.array([name == format for name in self._choices(group)])[code]
        return np.logical_and(self.active(genes)[:, columns[0]], found)

    def _choices(self, group: str) -> list[str]:
        """The format of each combination of choices, the last variable's fastest."""
        own = self._of_group[group]
        names = [variable.name for variable in own]
        every = itertools.product(*(variable.choices for variable in own))
        return [_format(own, dict(zip(names, choices, strict=True))) for choices in every]

    @cached_property
    def _of_group(self) -> dict[str, list[Variable]]:
        groups: dict[str, list[Variable]] = {}
        for variable in self.variables:
            if variable.group is not None:
                groups.setdefault(variable.group, []).append(variable)
        return groups

    @cached_property
    def corners(self) -> Mapping[str, Candidate]:
        """The extreme candidates by name, which every result is compared with.

        ``largest-fp32``, ``largest-int8``, ``smallest-fp32`` and ``smallest-int8``; the smallest only where more than
        precisions is searched. Where a group has no such format, ``uniform`` says what stands for it.
        """
        elastic = any(variable.kind == "architecture" for variable in self.variables)
        return {
            f"{size}-{precision}": self.decode(self._extreme(size, self.uniform(precision)))
            for size in (("largest", "smallest") if elastic else ("largest",))
            for precision in (Precision.FP32, Precision.INT8)
        }

    def corner(self, size: Literal["largest", "smallest"], precision: Precision) -> Candidate:
        """The extreme candidate: architecture variables at their last or first choice, all groups at one precision.

        Raises:
            UsageError: A group cannot have this precision; ``corners`` take what is nearest to it.
        """
        lacks = [v for v in self.variables if v.kind == "precision" and precision.value not in v.choices]
        if lacks:
            raise UsageError(f"the group '{lacks[0].group}' cannot be {precision}; allowed: {list(lacks[0].choices)}")
        return self.decode(self._extreme(size, self.uniform(precision)))

    def uniform(self, precision: Precision) -> Genes:
        """The choice of each precision variable when all are as near to INT8 or FP32 as can be, ``(n,)``; 0 for others.

        A group without ``int8`` takes its first choice that is not ``fp32``, one without ``fp32`` its last choice:
        they stand smallest first.
        """
        genes = np.zeros(len(self), dtype=np.int64)
        for i, variable in enumerate(self.variables):
            if variable.kind == "precision":
                choices = variable.choices
                first = next((i for i, choice in enumerate(choices) if choice != Precision.FP32), 0)
                nearest = first if precision == Precision.INT8 else len(choices) - 1
                genes[i] = choices.index(precision.value) if precision.value in choices else nearest
        return genes

    def _extreme(self, size: str, precisions: Genes) -> Genes:
        architecture = self.sizes - 1 if size == "largest" else np.zeros_like(self.sizes)
        return np.where([variable.kind == "precision" for variable in self.variables], precisions, architecture)

    def architecture(self, candidate: Candidate) -> tuple[tuple[str, Value], ...]:
        """The candidate without its precision policy: what two policies of one subnet share."""
        return tuple(item for item in candidate.items_ if self.variables[self.index[item[0]]].kind == "architecture")

    @property
    def genotypes(self) -> int:
        """How many genotypes there are, inactive genes counted."""
        return math.prod(len(variable.choices) for variable in self.variables)

    @property
    def networks(self) -> int:
        """How many distinct candidates there are."""
        children: dict[str, list[Variable]] = {}
        for variable in self.variables:
            if variable.when is not None:
                children.setdefault(variable.when.variable, []).append(variable)

        def count(variable: Variable) -> int:
            return sum(
                math.prod(
                    count(child)
                    for child in children.get(variable.name, [])
                    if child.when is not None and choice in child.when.values
                )
                for choice in variable.choices
            )

        return math.prod(count(variable) for variable in self.variables if variable.when is None)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal spaces; a study refuses trials of another one."""

        def apart(variable: Variable) -> list[str]:
            """What its name does not say of the group."""
            usual = variable.group in (None, variable.name.removeprefix(_PREFIX)) and variable.role == "both"
            return [] if usual else [str(variable.group), variable.role]

        text = json.dumps(
            [
                [v.name, list(v.choices), v.kind, [v.when.variable, list(v.when.values)] if v.when else None, *apart(v)]
                for v in self.variables
            ],
            separators=(",", ":"),
        )
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _format(variables: Sequence[Variable], values: Mapping[str, Value]) -> str:
    """The name of the format that the variables of a group make: ``w2`` and ``a4`` are ``w2a4``, equal ones are one."""
    order = sorted(variables, key=lambda variable: variable.role, reverse=True)
    return "".join(dict.fromkeys(str(values[variable.name]) for variable in order))


def unique_rows(genes: Genes) -> Sequence[int]:
    """The indices of the first occurrence of each distinct row of ``(m, n)``, in order."""
    return sorted(np.unique(genes, axis=0, return_index=True)[1].tolist()) if len(genes) else []
