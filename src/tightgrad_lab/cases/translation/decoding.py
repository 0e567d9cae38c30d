"""From a trained model to sentences: greedy and beam search.

Both return, for each source sentence, the numbers of the target tokens without marks. The score of a sentence is the
mean log-probability of its tokens, the end mark among them; a sentence that reaches the greatest length ends there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tightgrad_lab.cases.translation.model import Transformer
from tightgrad_lab.training.vocabulary import BEGIN, END, PAD, UNKNOWN

NEVER = (PAD, BEGIN, UNKNOWN)


@dataclass(frozen=True)
class Decoded:
    """Sentences of `ids`, the end mark among them if it was reached, and their scores."""

    ids: list[list[int]]
    scores: list[float]


def _log_probabilities(model: Transformer, tokens: Tensor, state: object) -> Tensor:
    scores = model.advance(tokens, state)  # type: ignore[arg-type]
    scores[:, NEVER] = -torch.inf
    return scores.log_softmax(-1)


@torch.no_grad()
def greedy(model: Transformer, source: Tensor, longest: int) -> Decoded:
    """Take the likeliest token each time.

    Args:
        model: in evaluation mode.
        source: padded numbers, shape (n, s).
        longest: tokens of a sentence at most, the end mark among them.
    """
    state = model.encode(source)
    tokens = torch.full((len(source),), BEGIN, device=source.device)
    ended = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    total = torch.zeros(len(source), device=source.device)
    rows: list[Tensor] = []
    for _ in range(longest):
        likely, tokens = _log_probabilities(model, tokens, state).max(-1)
        tokens = torch.where(ended, PAD, tokens)
        total += torch.where(ended, 0, likely)
        rows.append(tokens)
        ended = ended | (tokens == END)
        if bool(ended.all()):
            break
    ids = [[token for token in row if token != PAD] for row in torch.stack(rows, 1).tolist()]
    return Decoded(ids, [score / len(row) for score, row in zip(total.tolist(), ids, strict=True)])


@torch.no_grad()
def beam(model: Transformer, source: Tensor, longest: int, width: int) -> Decoded:
    """Keep the `width` likeliest beginnings; the sentence of the best score of all that ended, greedy's among them.

    Args:
        model: in evaluation mode.
        source: padded numbers, shape (n, s).
        longest: tokens of a sentence at most, the end mark among them.
        width: beginnings kept of each sentence.
    """
    best = greedy(model, source, longest)
    ids, scores = list(best.ids), list(best.scores)
    count, device = len(source), source.device
    state = model.encode(source).rows(torch.arange(count, device=device).repeat_interleave(width))
    tokens = torch.full((count * width,), BEGIN, device=device)
    total = torch.full((count, width), -torch.inf, device=device)
    total[:, 0] = 0  # all beginnings are the same at first
    begun = torch.empty(count, width, 0, dtype=torch.int64, device=device)
    for length in range(1, longest + 1):
        likely = _log_probabilities(model, tokens, state).view(count, width, -1)
        num_words = likely.shape[-1]
        total, place = (total.unsqueeze(-1) + likely).flatten(1).topk(width, dim=1)
        parent, chosen = place // num_words, place % num_words
        begun = torch.cat([begun.gather(1, parent.unsqueeze(-1).expand(-1, -1, length - 1)), chosen.unsqueeze(-1)], 2)
        ends = (chosen == END) if length < longest else torch.ones_like(chosen, dtype=torch.bool)
        for row, column in (ends & total.isfinite()).nonzero().tolist():
            score = float(total[row, column]) / length
            if score > scores[row]:
                ids[row], scores[row] = begun[row, column].tolist(), score
        total = total.masked_fill(ends, -torch.inf)
        if not bool(total.isfinite().any()):
            break
        state = state.rows((torch.arange(count, device=device).unsqueeze(1) * width + parent).flatten())
        tokens = chosen.flatten()
    return Decoded(ids, scores)
