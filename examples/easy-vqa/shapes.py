"""The questions about shapes alone, to begin with: a folder of ``visual_question_answering`` made from easy-VQA.

    pip install --no-deps easy-vqa==1.0
    python examples/easy-vqa/shapes.py runs/easy-vqa-shapes

Trained on all questions from the start, a small network learned colours and not yet shapes. One question in ten begins
with "what shape"; these are kept, and of the others one in thirty, so that each answer stays a class. The parts are
those of easy-VQA itself as the TOML files beside this one cut it: no image that steers the search later is trained
with here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qnas_plugin.data import Examples, SplitSizes
from qnas_plugin.tasks.visual_question_answering import load

SIZES = SplitSizes(calibration=128, search=1000)
OTHERS = 30


def write(examples: Examples, names: tuple[str, ...], out: Path, split: str) -> None:
    """Writes ``<split>.jsonl`` and links to its images."""
    rows = []
    (out / "images" / split).mkdir(parents=True, exist_ok=True)
    for number, (question, label) in enumerate(zip(examples.inputs, examples.labels, strict=True)):
        if not question.text.startswith("what shape") and number % OTHERS:
            continue
        image = Path("images") / split / Path(question.image.name).name
        if not (out / image).is_symlink():
            (out / image).symlink_to(question.image.name)
        rows.append({"question": question.text, "answer": names[label], "image": str(image)})
    (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{split}: {len(rows)} questions")


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    dataset = load("easy-vqa", sizes=SIZES)
    for split, examples in (("train", dataset.train), ("train_holdout", dataset.search), ("test", dataset.report)):
        write(examples, dataset.label_names, out, split)


if __name__ == "__main__":
    main()
