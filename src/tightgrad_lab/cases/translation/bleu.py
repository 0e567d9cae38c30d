"""Corpus BLEU by sacrebleu, from statistics that add up over batches and ranks."""

from collections.abc import Sequence

import torch
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor

ORDERS = 4


def statistics(translations: Sequence[str], references: Sequence[str]) -> Tensor:
    """Matching n-grams, n-grams (four each), length of the translations and of the references: float64, shape (10,)."""
    found = BLEU().corpus_score(translations, [references])
    return torch.tensor([*found.counts, *found.totals, found.sys_len, found.ref_len], dtype=torch.float64)


def bleu(totals: Tensor) -> float:
    """BLEU in 0 to 100, with sacrebleu's defaults."""
    numbers = [int(number) for number in totals.tolist()]
    score = BLEU.compute_bleu(
        numbers[:ORDERS], numbers[ORDERS : 2 * ORDERS], numbers[-2], numbers[-1], smooth_method="exp"
    )
    return float(score.score)


def signature() -> str:
    """How sacrebleu says what it did."""
    metric = BLEU()
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())
