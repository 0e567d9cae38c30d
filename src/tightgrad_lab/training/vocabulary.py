"""Words as numbers, and sentences of different length as one tensor."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PAD, UNKNOWN, BEGIN, END = range(4)
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return _TOKEN.findall(text.lower())


class Vocabulary:
    """The words seen at least `min_count` times, the most frequent first; the four special ones before them."""

    def __init__(self, sentences: Iterable[Sequence[str]], min_count: int, most: int | None = None) -> None:
        counts = Counter(word for sentence in sentences for word in sentence)
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        self.words = (*SPECIAL, *kept[:most])
        self.ids = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentence: Sequence[str]) -> Tensor:
        """Numbers of the words, int64, shape (n,)."""
        return torch.tensor([self.ids.get(word, UNKNOWN) for word in sentence], dtype=torch.int64)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The words up to the end mark, without special ones but `<unk>`."""
        found = []
        for number in ids:
            if number == END:
                break
            if number not in (PAD, BEGIN):
                found.append(self.words[number])
        return found


def padded(sentences: Sequence[Tensor]) -> Tensor:
    """One row a sentence, filled up with `PAD`: int64, shape (n, longest), at least one column."""
    longest = max(1, max((len(sentence) for sentence in sentences), default=1))
    rows = torch.full((len(sentences), longest), PAD)
    for row, sentence in zip(rows, sentences, strict=True):
        row[: len(sentence)] = sentence
    return rows
