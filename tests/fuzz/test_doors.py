"""No mutant of any kind of file is more than one line, and none makes a command wait for ever.

Seconds here, minutes by ``make fuzz``. What fails can be tried again with the seed that Hypothesis prints.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.campaign import outcome
from tests.fuzz.doors import Door
from tests.fuzz.mutators import SPECIALS, place

EXAMPLES = 60


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(door=st.data(), rng=st.randoms(use_true_random=False))
def test_a_mutant_is_refused_in_one_line_or_read(
    all_doors: dict[str, tuple[Door, Path]], door: st.DataObject, rng: Random
) -> None:
    one, folder = all_doors[door.draw(st.sampled_from(sorted(all_doors)))]
    came, fault = outcome(one, folder, one.mutant(rng, (folder / one.file).read_bytes()))
    assert came in ("refused", "accepted"), fault


def test_what_is_no_file_is_refused_without_waiting(all_doors: dict[str, tuple[Door, Path]]) -> None:
    """One door of each kind."""
    for one, folder in {door.kind: (door, folder) for door, folder in all_doors.values()}.values():
        for special in ("fifo", "device"):
            came, fault = outcome(one, folder, special)
            assert came in ("refused", "accepted"), f"{one.kind}, {special}: {fault}"


def test_sound_files_are_read(all_doors: dict[str, tuple[Door, Path]]) -> None:
    """Otherwise a door that refuses everything would pass."""
    for name, (one, folder) in all_doors.items():
        came, fault = outcome(one, folder, (folder / one.file).read_bytes())
        assert came == "accepted", f"{name}: {came} {fault}"


def test_place_makes_every_special(tmp_path: Path) -> None:
    for special in SPECIALS:
        (tmp_path / special).write_text("sound")
        place(tmp_path / special, special)
        assert not (tmp_path / special).is_file()


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_place_puts_content(tmp_path: Path, content: bytes) -> None:
    place(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == content
