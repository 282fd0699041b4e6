"""VQA-RAD's yes-or-no questions (Lau et al. 2018, CC0) as a folder of ``visual_question_answering``, and a checkpoint.

    python examples/vqa-rad/convert.py vqa-rad.tar runs/vqa-rad
    qnas train --supernet beit3 --checkpoint runs/vqa-rad/checkpoint --task visual_question_answering \\
               --data runs/vqa-rad/data --subnets sandwich --epochs 20 --learning-rate 5e-4 --out runs/vqa-rad/supernet

The tar file has ``trainset.json``, ``testset.json`` and ``images/``. Of the closed questions those are kept that are
answered yes or no. The checkpoint has random weights: BEiT-3 at 128 pixels with a tokenizer of the training questions'
words. Images stand in both official parts, with other questions.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

from qnas_plugin.supernets._beit3_model import Beit3Config

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def questions(content: bytes) -> list[dict[str, str]]:
    """The yes-or-no questions of a part, as rows."""
    rows: list[dict[str, Any]] = json.loads(content)
    closed = [row for row in rows if row["answer_type"].strip() == "CLOSED"]
    return [
        {"question": row["question"].strip(), "answer": answer, "image": f"images/{row['image_name']}"}
        for row in closed
        if (answer := str(row["answer"]).strip().lower()) in ("yes", "no")
    ]


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token a word, for the words that stand twice or more."""
    words = Tokenizer(WordLevel(unk_token=SPECIAL["unk_token"]))
    words.normalizer, words.pre_tokenizer = Lowercase(), Whitespace()
    words.train_from_iterator(texts, WordLevelTrainer(min_frequency=2, special_tokens=list(SPECIAL.values())))
    ends = [(token, words.token_to_id(token)) for token in ("<s>", "</s>")]
    words.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=62, model_input_names=names, **SPECIAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tar", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    data, checkpoint = options.out / "data", options.out / "checkpoint"
    data.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.tar) as archive:
        archive.extractall(data, [m for m in archive if m.name.startswith("images/")], filter="data")
        files = {split: archive.extractfile(f"{split}set.json") for split in ("train", "test")}
        rows = {split: questions(file.read()) for split, file in files.items() if file is not None}
    for split, own in rows.items():
        (data / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in own))
        print(f"{split}: {len(own)} questions, {sum(row['answer'] == 'yes' for row in own)} answered with yes")
    words = tokenizer([row["question"] for row in rows["train"]])
    words.save_pretrained(checkpoint)
    size = {"height": 128, "width": 128}
    ViTImageProcessor(size=size).save_pretrained(checkpoint)
    Beit3Config(
        architectures=["Beit3ForVisualQuestionAnswering"],
        vocab_size=len(words),
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        intermediate_size=768,
        hidden_dropout_prob=0.1,
        image_size=128,
        max_position_embeddings=64,
    ).save_pretrained(checkpoint)


if __name__ == "__main__":
    main()
