"""The memory estimate against the peak that the profiler saw in real steps."""

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad_lab.planning.estimate import (
    ActivationMemory,
    OptimizerMemory,
    estimate_memory,
    largest_micro_batch,
    measure_activations,
    optimizer_memory,
)
from tightgrad_lab.planning.live_bytes import LiveBytes
from tightgrad_lab.training.memory import peak_memory

CPU = torch.device("cpu")
VOCABULARY, WIDTH = 500, 64
LEAST, MOST = 0.94, 1.12  # of the measured peak


class Transformer(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.to(dtype)

    def forward(self, text):
        scores = self.head(self.block(self.embedding(text[:, :-1])))
        return nn.functional.cross_entropy(scores.flatten(0, 1).float(), text[:, 1:].flatten())


def text(samples):
    return torch.randint(VOCABULARY, (samples, 17), generator=torch.Generator().manual_seed(0))


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


def foreach(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=True)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def lamb(parameters):
    return tg.scaling.LAMB(parameters, lr=1e-3)


FEEDBACK = tg.Compress(tg.codecs.TopK(0.01), feedback=tg.ErrorFeedback())


def train(make_optimizer, samples, dtype, compress):
    model = Transformer(dtype)
    plan = tg.Plan(accumulate=tg.Accumulate(3), compress=compress)
    pipe = tg.attach(model, make_optimizer(model.parameters()), plan, weight=len)
    for window in pipe.windows([text(samples) for _ in range(6)]):  # optimizer state exists in the second
        for batch in window:
            pipe.backward(model(batch))
        pipe.step()


@pytest.mark.parametrize(
    ("make_optimizer", "samples", "dtype", "compress"),
    [
        (adamw, 1, torch.float32, None),
        (adamw, 24, torch.bfloat16, None),
        (adamw, 4, torch.float32, FEEDBACK),
        (foreach, 2, torch.float32, None),
        (momentum, 6, torch.float32, None),
        (lamb, 2, torch.float32, None),
    ],
)
def test_the_estimate_is_the_measured_peak(make_optimizer, samples, dtype, compress):
    model = Transformer(dtype)
    estimate = estimate_memory(
        model.parameters(),
        micro_batch=samples,
        activations=measure_activations(model, text(8), model.parameters()),
        optimizer=optimizer_memory(make_optimizer(model.parameters())),
        compresses=compress is not None,
        residual_itemsize=4.0 if compress else 0.0,
    )
    measured = peak_memory(lambda: train(make_optimizer, samples, dtype, compress), CPU)
    assert LEAST < estimate.total / measured < MOST, (estimate, measured)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_live_bytes_are_what_the_profiler_sees():
    model = Transformer()
    model(text(4)).backward()
    with LiveBytes() as live:
        model(text(4)).backward()
    assert live.peak == peak_memory(lambda: model(text(4)).backward(), CPU)
    assert live.alive == 0


def test_what_optimizers_hold():
    parameters = [nn.Parameter(torch.ones(3))]
    assert optimizer_memory(torch.optim.SGD(parameters, lr=0.1)).state_nbytes == 0
    assert optimizer_memory(momentum(parameters)) == OptimizerMemory(1.0, 0.0, False)
    assert optimizer_memory(adamw(parameters)).state_nbytes == 2
    assert optimizer_memory(torch.optim.AdamW(parameters, amsgrad=True)).state_nbytes == 3
    assert optimizer_memory(foreach(parameters)).steps_all
    assert not optimizer_memory(adamw(parameters)).steps_all


ACTIVATIONS = ActivationMemory(100.0, 4, 250.0)
PARAMETERS = [nn.Parameter(torch.zeros(10, 10)), nn.Parameter(torch.zeros(10), requires_grad=False)]
ADAM = OptimizerMemory(2.0, 1.0, False)


def estimate(**settings):
    return estimate_memory(PARAMETERS, **{"micro_batch": 4, "activations": ACTIVATIONS, "optimizer": ADAM, **settings})


def test_parts():
    found = estimate()
    assert (found.parameters, found.gradients, found.optimizer_state) == (440, 400, 800)
    assert (found.accumulator, found.residual, found.activations, found.stepping) == (0, 0, 250, 400)
    assert found.total == 440 + 400 + 800 + 400
    assert estimate(micro_batch=8).total == 440 + 400 + 800 + 500
    sharded = estimate(shards=4, sums="unsharded")
    assert (sharded.parameters, sharded.gradients, sharded.optimizer_state) == (110, 100, 200)
    assert sharded.accumulator == 400, "a whole gradient on every rank"
    assert estimate(shards=4, sums="shards").accumulator == 0
    half = [nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))]
    low = estimate_memory(half, micro_batch=1, activations=ACTIVATIONS, optimizer=ADAM)
    assert (low.gradients, low.accumulator) == (0, 400)
    assert estimate(compresses=True, residual_itemsize=4.0).residual == 400
    meta = [nn.Parameter(torch.zeros(10, 10, device="meta"))]
    assert estimate_memory(meta, micro_batch=1, activations=ACTIVATIONS, optimizer=ADAM).parameters == 400


@pytest.mark.parametrize(
    ("available", "samples"), [(2039, 0), (2040, 6), (2139, 7), (2140, 8), (2640, 16), (10**6, 15973)]
)
def test_the_largest_micro_batch_fits_and_one_more_does_not(available, samples):
    assert largest_micro_batch(estimate(), ACTIVATIONS, available) == samples
    if samples:
        assert estimate(micro_batch=samples).total <= available < estimate(micro_batch=samples + 1).total


@pytest.mark.parametrize(("nbytes", "samples"), [(99, 0), (100, 1), (149, 1), (150, 2), (250, 4), (312, 4), (313, 5)])
def test_samples_between_and_beyond_the_measured_sizes(nbytes, samples):
    assert ACTIVATIONS.most_samples(nbytes) == samples
    assert samples == 0 or ACTIVATIONS.of(samples) <= nbytes < ACTIVATIONS.of(samples + 1)


@pytest.mark.parametrize("settings", [{"micro_batch": 0}, {"shards": 0}, {"sums": "x"}, {"residual_itemsize": -1.0}])
def test_settings_out_of_bounds(settings):
    with pytest.raises(tg.ConfigError):
        estimate(**settings)
