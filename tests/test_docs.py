"""What the documentation names exists: links, files of this repository, and figures that are those of their tables."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_repository_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.])((?:qnas_plugin|benchmarks|tests|examples|docs)/[\w./-]*\w)", page.read_text(encoding="utf-8")
    )
    modules = [
        name.replace(".", "/")
        for name in re.findall(r"python -m (benchmarks\.[\w.]*\w)", page.read_text(encoding="utf-8"))
    ]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing + [name for name in modules if not (ROOT / f"{name}.py").exists()]


def test_each_page_of_results_begins_with_a_figure() -> None:
    for page in (ROOT / "docs" / "results").glob("*.md"):
        first = page.read_text(encoding="utf-8").partition("\n## ")[0]
        assert re.search(r"!\[[^\]]+\]\([\w.-]+\)", first), page.name


def test_figures_are_those_of_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    pages = ROOT / "docs" / "results"
    for page, *_ in figures.FIGURES:
        (tmp_path / f"{page}.md").write_bytes((pages / f"{page}.md").read_bytes())
    monkeypatch.setattr(figures, "PAGES", tmp_path)
    figures.main()
    for page, *_ in figures.FIGURES:
        assert (tmp_path / f"{page}.svg").read_text() == (pages / f"{page}.svg").read_text(), page
