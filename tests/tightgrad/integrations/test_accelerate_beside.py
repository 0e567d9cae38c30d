"""A plain `Accelerator` beside `tightgrad.attach`: its optimizer does nothing while it counts batches as well."""

import contextlib

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.utils.data import DataLoader

import tightgrad as tg
from support.tagging import BATCH, CLIPPED, STEPS, Tagger, Tokens, check_equal, num_tokens, raw_loop, weights_of


def train(accumulates, steps=STEPS, unwrap=False):
    accelerator = Accelerator(gradient_accumulation_steps=steps, cpu=True)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(Tokens(), batch_size=BATCH))
    plan = tg.Plan(accumulate=tg.Accumulate(STEPS, fetch="window"), clip=CLIPPED.clip)
    pipe = tg.attach(model, optimizer.optimizer if unwrap else optimizer, plan, weight=num_tokens)
    for window in pipe.windows(loader):
        for batch in window:
            with accelerator.accumulate(model) if accumulates else contextlib.nullcontext():
                pipe.backward(model(**batch)["loss"])
        before = weights_of(model)
        try:
            pipe.step()
        except tg.UsageError:
            check_equal(weights_of(model), before)
            pipe.abandon()
            raise
    return weights_of(model)


@pytest.mark.parametrize("steps", [STEPS, STEPS - 1])
def test_a_step_that_would_do_nothing_is_told(steps):
    with pytest.raises(tg.UsageError, match=r"would do nothing now.*Leave `with accelerator.accumulate\(model\):` out"):
        train(accumulates=True, steps=steps)


@pytest.mark.parametrize(("accumulates", "unwrap"), [(False, False), (True, True)])
def test_a_loop_that_steps_is_the_raw_loop(accumulates, unwrap):
    check_equal(train(accumulates, unwrap=unwrap), raw_loop(CLIPPED)[0])


def test_a_scaler_that_would_unscale_what_was_never_scaled_is_refused():
    Accelerator(cpu=True)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scaled = AcceleratedOptimizer(optimizer, scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(tg.UnsupportedError, match="would unscale gradients that the pipeline has never scaled"):
        tg.attach(model, scaled, CLIPPED)
