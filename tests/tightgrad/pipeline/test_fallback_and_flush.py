"""A step that compression would spoil is sent densely; what is left behind can be delivered at any time."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.collectives import run_threaded


class Sum(torch.optim.Optimizer):
    """Adds up what it is given and changes nothing."""

    def __init__(self, parameters):
        super().__init__(list(parameters), {})
        self.steps = 0
        self.total = [torch.zeros_like(p, dtype=torch.float64) for p in self.param_groups[0]["params"]]

    def step(self):
        self.steps += 1
        for total, parameter in zip(self.total, self.param_groups[0]["params"], strict=True):
            if parameter.grad is not None:
                total += parameter.grad


def small():
    """The same on every rank; ranks are threads here, which share torch's global generator, so it is drawn once."""
    return copy.deepcopy(_drawn())


@cache
def _drawn():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 2))


_drawn()


def batches(rank):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(4, 20, generator=generator) for _ in range(5)]


def run(collective, compress, *, clip=None, flush=False):
    model = small()
    optimizer = Sum(model.parameters())
    pipe = tg.attach(model, optimizer, tg.Plan(compress=compress, clip=clip), collective=collective)
    records = []
    for window in pipe.windows(batches(collective.rank)):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        records.append(pipe.step())
    if flush:
        records += [pipe.flush(), pipe.flush()]
    return optimizer, records, pipe


FEEDBACKS = {
    "float32": tg.ErrorFeedback(),
    "int8": tg.ErrorFeedback("int8"),
    "dgc": tg.feedback.MomentumCorrection(0.5),
}


@pytest.mark.parametrize("name", FEEDBACKS)
def test_flush_delivers_all_that_was_left(name):
    compress = tg.Compress(tg.codecs.TopK(0.02), feedback=FEEDBACKS[name])

    def body(collective):
        exact, _, _ = run(collective, tg.Compress())
        optimizer, records, pipe = run(collective, compress, flush=True)
        return exact.total, optimizer, records, pipe.state_dict(), pipe.state.step

    for exact, optimizer, records, state, step in run_threaded(3, body):
        *steps, flushed, nothing = records
        assert steps[-1].residual_norm > 0
        assert not flushed.skipped
        assert flushed.step == 5
        assert flushed.wire_bytes > 0
        assert flushed.residual_norm is None
        assert nothing.skip_reason == "no_residual"
        assert optimizer.steps == step == 6
        assert "residual" not in state["slots"]
        if name == "dgc":
            continue  # what it delivers is velocity
        bound = 1e-5 if name == "float32" else 0.1
        for total, want in zip(optimizer.total, exact, strict=True):
            assert (total - want).abs().max() < bound * want.abs().max()


def test_flush_is_clipped_and_needs_residuals_and_a_closed_window():
    compress = tg.Compress(tg.codecs.TopK(0.02), feedback=tg.ErrorFeedback())

    def body(collective):
        _, records, pipe = run(collective, compress, clip=tg.clip.GlobalNorm(0.01), flush=True)
        next(pipe.windows(batches(collective.rank)))
        with pytest.raises(tg.UsageError, match=r"no step\(\)"):
            pipe.flush()
        with pytest.raises(tg.UsageError, match=r"this plan keeps none; give Compress a feedback"):
            run(collective, tg.Compress(tg.codecs.TopK(0.02)), flush=True)
        return records[-2]

    for record in run_threaded(2, body):
        assert 0 < record.clip_coef < 1


def test_a_step_too_far_off_is_sent_densely_and_says_so():
    """Quantised to 8 bits nothing falls back; at density 0.02 everything does, and equals the dense run."""
    good = tg.Compress(tg.codecs.IntBlock(8), feedback=tg.ErrorFeedback(), fallback="dense", max_relative_error=0.1)
    bad = tg.Compress(tg.codecs.TopK(0.02), feedback=tg.ErrorFeedback(), fallback="dense", max_relative_error=0.1)

    def body(collective):
        return [run(collective, compress)[:2] for compress in (tg.Compress(), good, bad)]

    for (exact, _), (_, small_errors), (dense, large_errors) in run_threaded(3, body):
        assert all(0 < record.relative_error < 0.1 and not record.fell_back for record in small_errors)
        assert all(record.relative_error > 0.1 and record.fell_back for record in large_errors)
        assert all(record.residual_norm == 0 for record in large_errors)
        for total, want in zip(dense.total, exact.total, strict=True):
            assert torch.allclose(total, want, rtol=1e-6, atol=1e-9)
        assert large_errors[0].wire_bytes > small_errors[0].wire_bytes


def test_ranks_agree_on_the_error_of_all():
    """One rank's gradient is exactly what the codec can send; the fallback is decided for all."""
    compress = tg.Compress(tg.codecs.TopK(0.5), fallback="dense", max_relative_error=0.05)

    def body(collective):
        model = nn.Linear(8, 1, bias=False)
        pipe = tg.attach(model, Sum(model.parameters()), tg.Plan(compress=compress), collective=collective)
        row = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]]) if collective.rank == 0 else torch.ones(1, 8)
        for window in pipe.windows([row]):
            for batch in window:
                pipe.backward(model(batch).sum())
            record = pipe.step()
        return record.relative_error, record.fell_back

    first, second = run_threaded(2, body)
    assert first == second
    assert first[1]
    assert first[0] == pytest.approx((4 / 12) ** 0.5, rel=1e-6)


def test_settings_of_a_fallback_belong_together():
    codec = tg.codecs.TopK(0.1)
    with pytest.raises(tg.ConfigError, match="belong together"):
        tg.Compress(codec, fallback="dense")
    with pytest.raises(tg.ConfigError, match="belong together"):
        tg.Compress(codec, max_relative_error=0.1)
    with pytest.raises(tg.ConfigError, match="fallback='sparse'"):
        tg.Compress(codec, fallback="sparse", max_relative_error=0.1)
    with pytest.raises(tg.ConfigError, match="max_relative_error=0 must be above 0"):
        tg.Compress(codec, fallback="dense", max_relative_error=0)
    with pytest.raises(tg.IncompatiblePlanError, match="dense leaves nothing out"):
        tg.Compress(fallback="dense", max_relative_error=0.1)
    plan = tg.Plan(compress=tg.Compress(codec, fallback="dense", max_relative_error=0.1))
    assert tg.Plan.from_json(plan.to_json()) == plan
