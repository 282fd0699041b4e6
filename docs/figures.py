"""The figures of the result pages, drawn from the pages' own tables: ``python docs/figures.py``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

PAGES = Path(__file__).parent / "results"
WIDTH, ROW, LEFT = 640, 26, 250

FIGURES = (
    # page, first cell of the table's head, column of the bars, what a bar is
    ("minilm", "model", "faster than INT8", "times as fast as the whole network in INT8; points of accuracy lost"),
    ("networks", "network", "faster", "INT8 against FP32 of the same network, times as fast"),
    ("building", "", "a new subnet", "times as fast as plain export and quantization, a new subnet"),
)


def table(text: str, first: str, column: str) -> list[dict[str, str]]:
    """The rows of the first table whose head begins with a cell and has a column."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        head = cells(line)
        if line.startswith("|") and head[0] == first and column in head:
            rows = []
            for row in lines[i + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append(dict(zip(head, cells(row), strict=True)))
            return rows
    raise SystemExit(f"no table begins with '{first}' and has '{column}'")


def cells(line: str) -> list[str]:
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def factor(cell: str) -> float:
    """The factor in a cell like ``0.38 s, 10.7x``, or a plain number."""
    found = re.search(r"([\d.]+)x", cell) or re.search(r"([\d.]+)", cell)
    assert found is not None, cell
    return float(found[1])


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """A chart with a bar for each row: its name, its length, and what stands behind it; for light and dark pages."""
    longest = max(value for _, value, _ in rows)
    space = WIDTH - LEFT - 130
    parts = [f'<text x="0" y="16" font-weight="bold">{escape(title)}</text>']
    for i, (name, value, note) in enumerate(rows):
        y, length = 28 + ROW * i, space * value / longest
        parts.append(f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y + 3}" width="{length:.0f}" height="{ROW - 8}" fill="#3b78b5"/>')
        parts.append(f'<text x="{LEFT + length + 6:.0f}" y="{y + 16}">{value:g}x{escape(note)}</text>')
    height = 34 + ROW * len(rows)
    style = 'font-family="sans-serif" font-size="13" fill="#808080"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {style}>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main() -> None:
    for page, first, column, title in FIGURES:
        rows = table((PAGES / f"{page}.md").read_text(encoding="utf-8"), first, column)
        drawn = [
            (
                " ".join(next(iter(row.values())).replace("**", "").split()),
                factor(row[column]),
                f", {row['points']}" if "points" in row else "",
            )
            for row in rows
            if re.search(r"\d", row[column])
        ]
        (PAGES / f"{page}.svg").write_text(bars(drawn, title), encoding="utf-8")


if __name__ == "__main__":
    main()
