"""Text classification with an LSTM or a small BERT-style encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import tightgrad as tg
from tightgrad_lab.cases.text.bayes import naive_bayes
from tightgrad_lab.cases.text.data import Labelled, Texts, encoded, glosses, imdb, trec
from tightgrad_lab.cases.text.models import Bert, BiLSTM
from tightgrad_lab.training.case import Batch, Case, Example, Scores, Settings
from tightgrad_lab.training.shards import by_length
from tightgrad_lab.training.vocabulary import padded

GLOSS_WORDS = 40
QUESTION_WORDS = 40
REVIEW_WORDS = 400


@dataclass(frozen=True)
class TextCase(Case[Texts]):
    """One data set and model.

    Args:
        network: "lstm" or "bert".
        read: gives training and test texts.
        longest: words of a text that are read.
        epochs: passes over the training texts.
        variant: its name.
    """

    id: ClassVar[str] = "text"
    metric: ClassVar[str] = "accuracy"

    network: str
    read: Callable[[], tuple[Labelled, Labelled]]
    longest: int
    epochs: int
    variant: str

    def settings(self, *, full: bool) -> Settings:
        """AdamW, as the field does."""
        lstm = self.network == "lstm"
        return Settings(
            epochs=self.epochs,
            seeds=3 if full else 1,
            batch_size=128,
            micro_batches=4,
            learning_rate=1e-2 if lstm else 4e-3,
            warmup_fraction=0.1,
            momentum=0.9,
            weight_decay=0.01,
            clip=tg.clip.GlobalNorm(0.5 if lstm else 2.0),
            compress=tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback()),
            variant=self.variant,
        )

    def load(self) -> tuple[Texts, Texts]:
        """Training and test texts."""
        return self._parts

    @cached_property
    def _parts(self) -> tuple[Texts, Texts]:
        return encoded(*self.read(), self.longest)

    def model(self) -> nn.Module:
        """A fresh network."""
        train, _ = self.load()
        if self.network == "lstm":
            return BiLSTM(len(train.vocabulary), len(train.names), width=64, hidden=64, dropout=0.3)
        return Bert(len(train.vocabulary), len(train.names), self.longest, width=64, heads=4, layers=2, dropout=0.2)

    def optimizer(self, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        """AdamW."""
        betas = (settings.momentum, 0.999)
        return torch.optim.AdamW(
            model.parameters(), settings.learning_rate, betas, weight_decay=settings.weight_decay, fused=True
        )

    def order(self, samples: Texts, order: Tensor, batch_size: int) -> Tensor:
        """Texts of similar length together."""
        return by_length(order, samples.lengths, batch_size)

    def batch(self, samples: Texts, indices: Tensor) -> Batch:
        """Word numbers (n, longest of the batch), lengths and labels."""
        return padded([samples.ids[i] for i in indices.tolist()]), samples.lengths[indices], samples.labels[indices]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy."""
        ids, lengths, labels = batch
        return functional.cross_entropy(model(ids, lengths), labels)

    def count(self, model: nn.Module, batch: Batch, samples: Texts, indices: Tensor) -> Tensor:
        """Right answers, and answers."""
        ids, lengths, labels = batch
        right = (model(ids, lengths).argmax(dim=1) == labels).sum()
        return torch.stack([right, torch.full_like(right, len(labels))]).double()

    def scores(self, statistics: Tensor) -> Scores:
        """Share of right answers."""
        right, answers = statistics.tolist()
        return {"accuracy": right / answers}

    def baselines(self) -> dict[str, Scores]:
        """The most frequent label of the training texts, and naive Bayes."""
        train, test = self.load()
        frequent = int(train.labels.bincount().argmax())
        return {
            "majority": {"accuracy": float((test.labels == frequent).double().mean())},
            "naive_bayes": {"accuracy": float((naive_bayes(train, test) == test.labels).double().mean())},
        }

    @torch.no_grad()
    def examples(self, model: nn.Module, indices: Tensor) -> list[Example]:
        """The text, its label and the model's."""
        _, test = self.load()
        ids, lengths, labels = self.batch(test, indices)
        answers = model(ids, lengths).argmax(dim=1)
        return [
            Example(test.raw[int(i)], test.names[int(label)], test.names[int(answer)])
            for i, label, answer in zip(indices, labels, answers, strict=True)
        ]


VARIANTS = {
    "lstm": TextCase("lstm", glosses, GLOSS_WORDS, 3, "lstm"),
    "bert": TextCase("bert", glosses, GLOSS_WORDS, 3, "bert"),
    "trec-lstm": TextCase("lstm", trec, QUESTION_WORDS, 8, "trec-lstm"),
    "trec-bert": TextCase("bert", trec, QUESTION_WORDS, 8, "trec-bert"),
    "imdb-lstm": TextCase("lstm", imdb, REVIEW_WORDS, 4, "imdb-lstm"),
}
FULL = ("trec-lstm", "trec-bert", "imdb-lstm")
