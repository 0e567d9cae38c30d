"""Truncated backpropagation through time: the pieces of a sequence are the micro-batches of a window."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg

LENGTHS = [7, 5, 4]
PIECE = 3
PLAN = tg.Plan(accumulate=tg.Accumulate(3), clip=tg.clip.GlobalNorm(0.05))


def rnn(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.RNN(4, 4, batch_first=True).to(dtype)


def sequences():
    torch.manual_seed(1)
    return [torch.randn(2, length, 4) for length in LENGTHS]


def pieces(sequence):
    return sequence.split(PIECE, dim=1)


def loss_of(model, piece, state):
    found, state = model(piece, state)
    return F.mse_loss(found, piece), state.detach()


def by_hand():
    """Windows of three pieces, over the borders of sequences; N is the number of time steps."""
    model = rnn(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    flow = [(piece.double(), i == 0) for sequence in sequences() for i, piece in enumerate(pieces(sequence))]
    state = None
    for start in range(0, len(flow), 3):
        window = flow[start : start + 3]
        total = sum(piece.shape[0] * piece.shape[1] for piece, _ in window)
        for piece, is_first in window:
            loss, state = loss_of(model, piece, None if is_first else state)
            (loss * piece.shape[0] * piece.shape[1] / total).backward()
        tg.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_pieces_as_micro_batches_are_the_loop_by_hand():
    model = rnn()
    pipe = tg.attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        PLAN,
        weight=lambda batch: batch[0].shape[0] * batch[0].shape[1],
    )
    flow = ((piece, i == 0) for sequence in sequences() for i, piece in enumerate(pieces(sequence)))
    state = None
    for window in pipe.windows(flow):
        for piece, is_first in window:
            loss, state = loss_of(model, piece, None if is_first else state)
            pipe.backward(loss)
        pipe.step()
    for found, exact in zip(model.parameters(), by_hand().parameters(), strict=True):
        torch.testing.assert_close(found, exact.float(), rtol=1e-6, atol=1e-7)


def test_a_second_backward_in_one_micro_batch_is_told_to_be_one_of_its_own():
    model = rnn()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.5), PLAN)
    window = next(iter(pipe.windows(sequences()[:1])))
    first, second, *_ = pieces(next(iter(window)))
    loss, state = loss_of(model, first, None)
    pipe.backward(loss)
    with pytest.raises(tg.UsageError, match=r"let the loader of pipe.windows\(\) yield the pieces"):
        pipe.backward(loss_of(model, second, state)[0])
