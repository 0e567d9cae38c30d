"""Labelled texts as numbers. The vocabulary is that of the training texts only."""

import csv
import gzip
import io
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from tightgrad_lab.fetch import need
from tightgrad_lab.training.vocabulary import Vocabulary, words

DATA = "wordnet_gloss_12.tsv.gz"
MIN_COUNT = 2

Labelled = list[tuple[str, str]]
"""Pairs of label and text."""


@dataclass(frozen=True)
class Texts:
    """Labelled texts.

    Attributes:
        raw: as written.
        ids: numbers of the words, a tensor a text, int64.
        lengths: words of each text, int64, shape (n,).
        labels: int64, shape (n,).
        names: of the labels.
        vocabulary: of the training texts.
    """

    raw: list[str]
    ids: list[Tensor]
    lengths: Tensor
    labels: Tensor
    names: list[str]
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.raw)


def encoded(train: Labelled, test: Labelled, longest: int) -> tuple[Texts, Texts]:
    """Texts of at most `longest` words; longer ones are cut."""
    vocabulary = Vocabulary((words(text) for _, text in train), MIN_COUNT)
    names = sorted({label for label, _ in train})

    def texts(labelled: Labelled) -> Texts:
        ids = [vocabulary.encode(words(text)[:longest] or ["<unk>"]) for _, text in labelled]
        return Texts(
            [text for _, text in labelled],
            ids,
            torch.tensor([len(row) for row in ids]),
            torch.tensor([names.index(label) for label, _ in labelled]),
            names,
            vocabulary,
        )

    return texts(train), texts(test)


@cache
def glosses() -> tuple[Labelled, Labelled]:
    """The embedded texts: 12,000 and 2,400."""
    packed = (files("tightgrad_lab") / "data" / DATA).read_bytes()
    return _rows(gzip.decompress(packed).decode("utf-8"))


@cache
def trec() -> tuple[Labelled, Labelled]:
    """Questions (Li and Roth 2002): 5,452 and 500."""
    return _rows((need("trec") / "trec.tsv").read_text(encoding="utf-8"))


@cache
def imdb() -> tuple[Labelled, Labelled]:
    """Film reviews (Maas et al. 2011): 25,000 and 25,000."""
    return _rows((need("imdb") / "imdb.tsv").read_text(encoding="utf-8"))


def _rows(text: str) -> tuple[Labelled, Labelled]:
    reader = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    rows = [(row["split"], row["label"], row["text"]) for row in reader]
    train, test = ([(label, text) for part, label, text in rows if part == name] for name in ("train", "test"))
    return train, test
