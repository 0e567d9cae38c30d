"""Where error feedback must not be used: a codec whose error is larger than what it was given."""

from functools import partial

import pytest
import torch

import tightgrad as tg
from tightgrad.codecs import QSGD, IntBlock, RandomK, Sign, StochasticPrune, TopK
from tightgrad.collectives import SingleCollective
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import Codec, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import State
from tightgrad.reducers import Gather

STEPS = 30


def residual_over_gradient(codec: Codec) -> float:
    """After some steps with new noise each, as a gradient is."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}
    for step in range(STEPS):
        context = ReduceContext(SingleCollective(), StepRng(0, step, 0), StageClock())
        grads = {"weight": torch.randn(4_096, generator=generator)}
        inner = partial(Gather().reduce, codec=codec, state=state, context=context)
        state = tg.ErrorFeedback().reduce_(grads, state, inner).state
    return float(state["residual"]["weight"].norm()) / 4_096**0.5


@pytest.mark.parametrize("codec", [QSGD(1), RandomK(0.1, scaling="unbiased"), StochasticPrune(0.01)], ids=repr)
def test_a_codec_that_errs_by_more_than_it_is_given_grows_without_end(codec: Codec) -> None:
    assert codec.unbiased
    assert residual_over_gradient(codec) > 1e3


@pytest.mark.parametrize("codec", [IntBlock(4), Sign(), TopK(0.1), QSGD(64, norm="max")], ids=repr)
def test_others_do_not(codec: Codec) -> None:
    assert residual_over_gradient(codec) < STEPS**0.5


def test_the_card_says_so() -> None:
    assert "QSGD" in tg.ErrorFeedback.card.avoid_when
