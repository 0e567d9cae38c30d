"""Makes the small, invented data that the commands of the board read, below a folder of clones.

    python benchmarks/board_data.py REPOS
    tightgrad audit board --repos REPOS

Each file has the form that a script expects of its own data set; none of it is anybody's data.
"""

import gzip
import json
import pickle
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WORDS = "the cat sat on a mat and saw one dog run far away from home while rain fell".split()  # noqa: SIM905
IMAGES = {"train": 22, "val": 4}
"""Of each of three classes."""


def text(draw: random.Random, words: int) -> str:
    """A sentence of this many words."""
    return " ".join(draw.choices(WORDS, k=words))


def ragged(draw: random.Random) -> str:
    """An answer whose length differs much from the next one's."""
    return text(draw, draw.choice([1, 3, 10, 40]))


def lines(path: Path, rows: Iterator[object] | list[object]) -> None:
    """One JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tokens(path: Path, count: int, vocabulary: int, dtype: type) -> None:
    """A file of token numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.random.default_rng(0).integers(3, vocabulary, count).astype(dtype).tofile(path)


def images(repos: Path) -> None:
    """Folders of images, one for each class: timm, DeiT, Swin, ConvNeXt, DINO, MAE, DiT; and U-Net's masks."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for name in ("ant", "bee", "cat"):
            folder = repos / "data" / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    unet = repos / "Pytorch-UNet" / "data"
    for name in ("imgs", "masks"):
        (unet / name).mkdir(parents=True, exist_ok=True)
    for number in range(22):
        Image.fromarray(draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(unet / "imgs" / f"{number}.png")
        mask = draw.integers(0, 2, (64, 64)).astype(np.uint8) * 255
        Image.fromarray(mask).save(unet / "masks" / f"{number}_mask.gif")


def token_files(repos: Path) -> None:
    """Texts that are numbers already: nanoGPT, llama2.c, build-nanogpt, GPT2-Chinese; and x-transformers' bytes."""
    for split in ("train", "val"):
        tokens(repos / "nanoGPT" / "data" / "tiny" / f"{split}.bin", 20_000, 64, np.uint16)
        fineweb = repos / "build-nanogpt" / "edu_fineweb10B"
        fineweb.mkdir(parents=True, exist_ok=True)
        np.save(fineweb / f"edufineweb_{split}_000000.npy", np.random.default_rng(0).integers(0, 5000, 60_000))
    (repos / "nanoGPT" / "data" / "tiny" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 64}))
    for number in range(2):
        tokens(repos / "llama2.c" / "data" / "TinyStories_all_data" / f"data{number:02}.bin", 6000, 32_000, np.uint16)
    endings = [{"ctx": "the cat sat", "label": 0, "endings": ["on a mat", "far away", "and saw", "rain"]}]
    lines(repos / "build-nanogpt" / "hellaswag" / "hellaswag_val.jsonl", endings)
    draw = random.Random(0)
    chinese = repos / "GPT2-Chinese" / "data" / "tokenized"
    chinese.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        numbers = " ".join(str(draw.randrange(200)) for _ in range(16 * (23 + number)))
        (chinese / f"tokenized_train_{number}.txt").write_text(numbers, encoding="utf-8")
    config = {"n_ctx": 16, "n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 200}
    (repos / "GPT2-Chinese" / "data" / "tiny.json").write_text(json.dumps(config), encoding="utf-8")
    enwik8 = repos / "x-transformers" / "data" / "enwik8.gz"
    enwik8.parent.mkdir(parents=True, exist_ok=True)
    book = text(draw, 200_000).encode()
    with gzip.open(enwik8, "wb", compresslevel=1) as file:
        for start in range(0, 95_000_000, len(book)):
            file.write(book[: 95_000_000 - start])


def conversations(repos: Path) -> None:
    """Questions with answers of very different lengths: minimind, happy-llm, LoRA, llama-cookbook, Alpaca."""
    draw = random.Random(0)
    pairs = [(text(draw, draw.randint(2, 8)), ragged(draw)) for _ in range(44)]
    more = {"reasoning_content": "", "tools": "", "tool_calls": ""}
    lines(
        repos / "minimind" / "sft.jsonl",
        [
            {"conversations": [{"role": "user", "content": a, **more}, {"role": "assistant", "content": b, **more}]}
            for a, b in pairs
        ],
    )
    said = [
        [
            {"role": "system", "content": "you help"},
            {"role": "user", "content": a},
            {"role": "assistant", "content": b},
        ]
        for a, b in pairs
    ]
    lines(repos / "happy-llm" / "docs" / "chapter5" / "code" / "belle.jsonl", list(said))
    numbers = [{"context": [5, 6, 7], "completion": [9] * len(b.split()) + [3]} for _, b in pairs]
    lines(repos / "LoRA" / "examples" / "NLG" / "data" / "tiny.jsonl", list(numbers))
    asked = [{"instruction": a, "input": "", "output": b} for a, b in pairs]
    (repos / "data" / "alpaca.json").write_text(json.dumps(asked), encoding="utf-8")
    lines(repos / "data" / "text" / "train.jsonl", [{"prompt": a, "completion": " " + b} for a, b in pairs])
    spam = repos / "LLMs-from-scratch" / "ch06" / "02_bonus_additional-experiments"
    for split, count in (("train", 37), ("validation", 6), ("test", 6)):
        messages = "".join(f"{place % 2},{text(draw, 2 + place % 5)}\n" for place in range(count))
        (spam / f"{split}.csv").write_text(f"Label,Text\n{messages}", encoding="utf-8")
    same = [{"sentence1": a, "sentence2": b, "label": len(b) % 2, "idx": place} for place, (a, b) in enumerate(pairs)]
    hub(repos / "accelerate" / "examples" / "by_feature" / "nyu-mll" / "glue", "mrpc", same)
    alike = [{"sentence1": a, "sentence2": b, "score": len(b) % 6 / 5} for a, b in pairs]
    stsb = repos / "sentence-transformers/examples/sentence_transformer/training/sts/sentence-transformers/stsb"
    hub(stsb, "default", list(alike))


def hub(folder: Path, name: str, rows: list[object]) -> None:
    """A folder of the name by which a script loads a data set from a hub."""
    for split in ("train", "validation", "test"):
        lines(folder / name / f"{split}.jsonl", rows)
    files = "".join(
        f"  - split: {split}\n    path: {name}/{split}.jsonl\n" for split in ("train", "validation", "test")
    )
    head = f"---\nconfigs:\n- config_name: {name}\n  data_files:\n{files}---\n"
    (folder / "README.md").write_text(head, encoding="utf-8")


def models(repos: Path) -> None:
    """Models of transformers with one small layer and fresh weights, and a tokenizer of the words above."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    special = ["[UNK]", "<s>", "</s>", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    known = Tokenizer(models.WordLevel({word: place for place, word in enumerate([*special, *WORDS])}, "[UNK]"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, cls_token="[CLS]", sep_token="[SEP]", **names)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    llama = LlamaConfig(num_attention_heads=2, max_position_embeddings=256, pad_token_id=3, **sizes)
    bert = BertConfig(num_attention_heads=2, max_position_embeddings=256, pad_token_id=3, **sizes)
    for name, model in {"llama": LlamaForCausalLM(llama), "bert": BertForSequenceClassification(bert)}.items():
        model.save_pretrained(repos / "data" / name)
        tokenizer.save_pretrained(repos / "data" / name)
        config = repos / "data" / name / "tokenizer_config.json"
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"}  # a name that transformers 4 knows too
        config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | kind), encoding="utf-8")
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "layers_per_block": 1}
    unet = {"_class_name": "UNet2DModel", "sample_size": 16, "block_out_channels": [8, 16], "norm_num_groups": 4}
    (repos / "data" / "unet").mkdir(exist_ok=True)
    (repos / "data" / "unet" / "config.json").write_text(json.dumps(unet | blocks), encoding="utf-8")
    for place in ("accelerate/examples/by_feature/bert-base-cased",):
        shutil.copytree(repos / "data" / "bert", repos / place, dirs_exist_ok=True)


def litgpt(repos: Path) -> None:
    """A checkpoint with one small layer and fresh weights, as litgpt keeps them; its own code makes it."""
    sys.path.insert(0, str(repos / "litgpt"))
    import torch
    from litgpt.config import Config  # type: ignore[import-not-found]
    from litgpt.model import GPT  # type: ignore[import-not-found]
    from litgpt.utils import save_config  # type: ignore[import-not-found]

    folder = repos / "data" / "litgpt"
    folder.mkdir(exist_ok=True)
    config = Config(name="tiny", block_size=256, vocab_size=64, padded_vocab_size=64, n_layer=1, n_head=2, n_embd=32)
    save_config(config, folder)
    torch.save(GPT(config).state_dict(), folder / "lit_model.pth")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(repos / "data" / "llama" / name, folder)


if __name__ == "__main__":
    for make in (images, token_files, conversations, models, litgpt):
        make(Path(sys.argv[1]))
