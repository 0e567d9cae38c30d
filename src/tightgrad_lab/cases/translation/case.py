"""Translation with a transformer. Loss and weight are over target tokens, padding apart."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

import tightgrad as tg
from tightgrad_lab.cases.translation.bleu import bleu, statistics
from tightgrad_lab.cases.translation.data import Pair, Pairs, encoded, tatoeba, tatoeba_whole
from tightgrad_lab.cases.translation.decoding import Decoded, beam, greedy
from tightgrad_lab.cases.translation.dictionary import dictionary, word_by_word
from tightgrad_lab.cases.translation.model import Transformer
from tightgrad_lab.cases.translation.words import sentence_of
from tightgrad_lab.training.case import Batch, Case, Example, Scores, Settings
from tightgrad_lab.training.shards import by_length
from tightgrad_lab.training.vocabulary import PAD, Vocabulary, padded

BEAM_WIDTH = 4


@dataclass(frozen=True)
class TranslationCase(Case[Pairs]):
    """One data set and size.

    Args:
        read: gives training and test pairs.
        most_words: of each vocabulary.
        longest: tokens of a sentence at most, marks among them.
        width: of the model.
        layers: of the encoder, and of the decoder.
        dropout: of the model.
        epochs: passes over the training pairs.
        batch_size: sentences of one step.
        learning_rate: of AdamW, after the warm-up.
        variant: its name.
    """

    id: ClassVar[str] = "translation"
    metric: ClassVar[str] = "bleu"

    read: Callable[[], tuple[list[Pair], list[Pair]]]
    most_words: int | None
    longest: int
    width: int
    layers: int
    dropout: float
    epochs: int
    batch_size: int
    learning_rate: float
    variant: str

    def settings(self, *, full: bool) -> Settings:
        """AdamW with warm-up, as the field does."""
        return Settings(
            epochs=self.epochs,
            seeds=3 if full else 1,
            batch_size=self.batch_size,
            micro_batches=2,
            learning_rate=self.learning_rate,
            warmup_fraction=0.1,
            momentum=0.9,
            weight_decay=0.01,
            clip=tg.clip.GlobalNorm(1.0),
            compress=tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback()),
            variant=self.variant,
        )

    def load(self) -> tuple[Pairs, Pairs]:
        """Training and test pairs."""
        return self._parts

    @cached_property
    def _parts(self) -> tuple[Pairs, Pairs]:
        return encoded(*self.read(), self.most_words)

    def model(self) -> nn.Module:
        """A fresh network."""
        train, _ = self.load()
        words = (len(train.source_words), len(train.target_words))
        return Transformer(*words, self.longest, self.width, heads=4, layers=self.layers, dropout=self.dropout)

    def optimizer(self, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        """AdamW."""
        betas = (settings.momentum, 0.98)
        return torch.optim.AdamW(
            model.parameters(), settings.learning_rate, betas, weight_decay=settings.weight_decay, fused=True
        )

    def order(self, samples: Pairs, order: Tensor, batch_size: int) -> Tensor:
        """Sentences of similar length together."""
        return by_length(order, torch.tensor([len(target) for target in samples.targets]), batch_size)

    def batch(self, samples: Pairs, indices: Tensor) -> Batch:
        """Source and target numbers, shape (n, s) and (n, t)."""
        chosen = indices.tolist()
        return (
            padded([samples.sources[i][-self.longest :] for i in chosen]),
            padded([samples.targets[i][: self.longest + 1] for i in chosen]),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy of each target token after the one before it."""
        source, target = batch
        scores = model(source, target[:, :-1])
        return functional.cross_entropy(scores.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)

    def weight(self, batch: Batch) -> Tensor:
        """Target tokens, the end mark among them."""
        return (batch[1][:, 1:] != PAD).sum()

    def count(self, model: nn.Module, batch: Batch, samples: Pairs, indices: Tensor) -> Tensor:
        """BLEU's statistics of greedy translations."""
        return self._statistics(greedy(cast(Transformer, model), batch[0], self.longest), samples, indices)

    def scores(self, statistics: Tensor) -> Scores:
        """BLEU of greedy translations."""
        return {"bleu": bleu(statistics)}

    def last_count(self, model: nn.Module, batch: Batch, samples: Pairs, indices: Tensor) -> Tensor:
        """BLEU's statistics of the translations that beam search finds."""
        return self._statistics(beam(cast(Transformer, model), batch[0], self.longest, BEAM_WIDTH), samples, indices)

    def last_scores(self, statistics: Tensor) -> Scores:
        """BLEU of beam search."""
        return {"bleu_beam": bleu(statistics)}

    def baselines(self) -> dict[str, Scores]:
        """Word by word, and the source left as it is."""
        train, test = self.load()
        best = dictionary(train)
        translated = [sentence_of(test.target_words.decode(word_by_word(best, source))) for source in test.sources]
        references = [target for _, target in test.raw]
        return {
            "dictionary": {"bleu": bleu(statistics(translated, references))},
            "copy": {"bleu": bleu(statistics([source for source, _ in test.raw], references))},
        }

    def examples(self, model: nn.Module, indices: Tensor) -> list[Example]:
        """The sentence, its translation, and the one that beam search finds."""
        _, test = self.load()
        decoded = beam(cast(Transformer, model), self.batch(test, indices)[0], self.longest, BEAM_WIDTH)
        found = _sentences(decoded, test.target_words)
        return [Example(*test.raw[int(i)], sentence) for i, sentence in zip(indices, found, strict=True)]

    def _statistics(self, decoded: Decoded, samples: Pairs, indices: Tensor) -> Tensor:
        references = [samples.raw[i][1] for i in indices.tolist()]
        return statistics(_sentences(decoded, samples.target_words), references)


def _sentences(decoded: Decoded, words: Vocabulary) -> list[str]:
    return [sentence_of(words.decode(ids)) for ids in decoded.ids]


VARIANTS = {
    "tatoeba-13k": TranslationCase(tatoeba, None, 24, 64, 1, 0.0, 4, 64, 8e-3, "tatoeba-13k"),
    "tatoeba-178k": TranslationCase(tatoeba_whole, 8000, 40, 128, 2, 0.1, 10, 128, 3e-3, "tatoeba-178k"),
}
FULL = ("tatoeba-178k",)
