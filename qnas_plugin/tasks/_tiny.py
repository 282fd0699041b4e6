"""Tokenizers and image processors of tiny checkpoints, generated: what `tiny` of tasks and supernets is made of."""

from __future__ import annotations

from pathlib import Path

WORDS = (
    *("good", "great", "fine", "lovely"),
    *("bad", "awful", "poor", "dull"),
    *("film", "plot", "actor", "scene", "the", "a", "very", "not"),
)


def write_tokenizer(folder: Path) -> int:
    """BERT's, of whole words; gives their number."""
    from transformers import BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return len(vocabulary)


def write_question_tokenizer(folder: Path) -> int:
    """One with the special tokens of BEiT-3, of whole words; gives their number."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=30,
    ).save_pretrained(folder)
    return len(vocabulary)


def write_image_processor(folder: Path, channels: int = 1, mean: float = 0.5, deviation: float = 0.5) -> None:
    """Of images of 8x8 pixels, which it only scales."""
    from transformers import ViTImageProcessor

    ViTImageProcessor(
        do_resize=False,
        image_mean=[mean] * channels,
        image_std=[deviation] * channels,
        size={"height": 8, "width": 8},
    ).save_pretrained(folder)
