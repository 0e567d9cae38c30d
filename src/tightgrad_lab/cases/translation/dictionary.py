"""The simple method to beat: each word's likeliest translation, in the order of the source.

The dictionary is IBM model 1 (Brown et al. 1993), learned from the training pairs by expectation maximisation; a word
of its own stands for nothing in the source.
"""

import torch
from torch import Tensor

from tightgrad_lab.cases.translation.data import Pairs
from tightgrad_lab.training.vocabulary import END, UNKNOWN

ROUNDS = 8


def dictionary(pairs: Pairs) -> Tensor:
    """The likeliest target word of each source word: int64, shape (source words,)."""
    nothing = len(pairs.source_words)
    sources, targets, places = [], [], []
    place = 0
    for source, target in zip(pairs.sources, pairs.targets, strict=True):
        words = torch.cat([source[:-1], torch.tensor([nothing])])
        own = target[1:-1]
        sources.append(words.repeat(len(own)))
        targets.append(own.repeat_interleave(len(words)))
        places.append(torch.arange(place, place + len(own)).repeat_interleave(len(words)))
        place += len(own)
    num_targets = len(pairs.target_words)
    codes, which = torch.unique(torch.cat(sources) * num_targets + torch.cat(targets), return_inverse=True)
    where = torch.cat(places)
    chance = torch.ones(len(codes), dtype=torch.float64)
    for _ in range(ROUNDS):
        share = chance[which]
        share = share / torch.zeros(place, dtype=torch.float64).index_add_(0, where, share)[where]
        counts = torch.zeros_like(chance).index_add_(0, which, share)
        totals = torch.zeros(nothing + 1, dtype=torch.float64).index_add_(0, codes // num_targets, counts)
        chance = counts / totals[codes // num_targets]
    best = torch.full((nothing,), UNKNOWN)
    order = chance.argsort(stable=True)
    order = order[(codes[order] // num_targets != nothing) & (codes[order] % num_targets != UNKNOWN)]
    for code in codes[order].tolist():  # the likeliest last, so it stays
        best[code // num_targets] = code % num_targets
    return best


def word_by_word(best: Tensor, source: Tensor) -> list[int]:
    """Translate one source sentence; words that the dictionary lacks are left out."""
    return [int(word) for word in best[source[source != END]] if int(word) != UNKNOWN]
