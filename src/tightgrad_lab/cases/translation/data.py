"""Sentence pairs as numbers. Both vocabularies are those of the training pairs only."""

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from tightgrad_lab.cases.translation.words import source_tokens, target_tokens
from tightgrad_lab.fetch import need
from tightgrad_lab.training.vocabulary import BEGIN, END, Vocabulary

DATA = "tatoeba_en_fr_13k.tsv.gz"
MIN_COUNT = 3
SPLIT_SEED = 0
TEST_SENTENCES = 2000

Pair = tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations.

    Attributes:
        raw: pairs as written.
        sources: numbers of the tokens and an end mark, int64.
        targets: a begin mark, numbers of the tokens, an end mark, int64.
        source_words: vocabulary of the training sentences.
        target_words: vocabulary of their translations.
    """

    raw: Sequence[Pair]
    sources: list[Tensor]
    targets: list[Tensor]
    source_words: Vocabulary
    target_words: Vocabulary

    def __len__(self) -> int:
        return len(self.raw)


def encoded(train: Sequence[Pair], test: Sequence[Pair], most: int | None = None) -> tuple[Pairs, Pairs]:
    """Number the tokens; `most` words of each language at most."""
    sources = Vocabulary((source_tokens(source) for source, _ in train), MIN_COUNT, most)
    targets = Vocabulary((target_tokens(target) for _, target in train), MIN_COUNT, most)
    begin, end = torch.tensor([BEGIN]), torch.tensor([END])

    def pairs(raw: Sequence[Pair]) -> Pairs:
        return Pairs(
            raw,
            [torch.cat([sources.encode(source_tokens(source)), end]) for source, _ in raw],
            [torch.cat([begin, targets.encode(target_tokens(target)), end]) for _, target in raw],
            sources,
            targets,
        )

    return pairs(train), pairs(test)


@cache
def tatoeba_whole() -> tuple[list[Pair], list[Pair]]:
    """All pairs but those of 2,000 English sentences, which test: the first translation of each is the reference."""
    lines = (need("en-fr") / "en-fr.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    by_source: dict[str, list[str]] = {}
    for english, french, *_ in rows:
        by_source.setdefault(english, []).append(french)
    sources = sorted(by_source)
    order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    held, kept = order[-TEST_SENTENCES:], order[:-TEST_SENTENCES]
    train = [(sources[i], french) for i in kept for french in by_source[sources[i]]]
    return train, [(sources[i], by_source[sources[i]][0]) for i in held]


@cache
def tatoeba() -> tuple[list[Pair], list[Pair]]:
    """The embedded pairs: 12,000 and 1,000."""
    packed = (files("tightgrad_lab") / "data" / DATA).read_bytes()
    reader = csv.DictReader(
        io.StringIO(gzip.decompress(packed).decode("utf-8")), delimiter="\t", quoting=csv.QUOTE_NONE
    )
    rows = [(row["split"], row["en"], row["fr"]) for row in reader]
    train, test = ([(en, fr) for part, en, fr in rows if part == name] for name in ("train", "test"))
    return train, test
