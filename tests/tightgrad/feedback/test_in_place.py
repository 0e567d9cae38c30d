"""Error feedback in the gradients' own memory: the same bits as apart from it, whatever gradients look like."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.in_turn import in_turn
from support.training import on_ranks
from tightgrad.collectives import run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.sync.compressed import owns_storage, reduce_gradients
from tightgrad.sync.fallback import sending

CODEC = tg.codecs.TopK(0.2)


class Apart(tg.ErrorFeedback):
    """Never overwrites a gradient."""

    card = replace(tg.ErrorFeedback.card, id="apart")

    def reduce_(self, grads, state, inner):
        clones = {name: grad.clone(memory_format=torch.contiguous_format) for name, grad in grads.items()}
        return super().reduce_(clones, state, inner)


class Sharing(nn.Module):
    """Both gradients come from one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(2, 3))

    def forward(self, inputs):
        return (self.first + self.second.view(-1)) * inputs


class Parts(nn.Module):
    """Autograd gives the parameters parts of one gradient."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.full((2,), float(i + 1))) for i in range(3)])

    def forward(self, inputs):
        return torch.cat(list(self.parts)) * inputs


class Strided(nn.Module):
    """A parameter that counts as contiguous, with another stride than contiguous ones have."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty_strided((6, 1), (1, 7)).fill_(0.5))

    def forward(self, inputs):
        return self.weight.view(-1) * inputs


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) / 10)

    def forward(self, inputs):
        return self.layer(inputs.expand(4, 2, 3, 6)).mean()


MODELS = {
    "sharing": Sharing,
    "parts": Parts,
    "strided": Strided,
    "channels last": Convolution,
    "float64": lambda: Sharing().double(),
    "bfloat16": lambda: Strided().bfloat16(),
}


def trained(collective, make_model, compress, steps=6):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = tg.Plan(accumulate=tg.Accumulate(2), compress=compress, clip=tg.clip.GlobalNorm(0.5))
    pipe = tg.attach(model, optimizer, plan, collective=collective, weight=lambda batch: 1.0)
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(collective.rank)
    found = []
    for window in pipe.windows([torch.randn(6, generator=generator).to(dtype) for _ in range(2 * steps)]):
        for batch in window:
            pipe.backward(model(batch).square().sum())
        record = pipe.step()
        held = pipe.state_dict()["slots"]
        found.append((record.grad_norm, record.residual_norm, held, [p.detach().clone() for p in model.parameters()]))
    return found


def same(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return all(map(same, first, second))
    return first == second


@pytest.mark.parametrize(("name", "residual", "fallback"), in_turn(MODELS, ["float32", "int8"], [None, "dense"]))
def test_bits_are_the_same(name, residual, fallback):
    def run(feedback):
        settings = {"fallback": fallback, "max_relative_error": 0.3 if fallback else None}
        compress = tg.Compress(CODEC, feedback=feedback(residual=residual), **settings)
        return on_ranks(2, lambda collective: trained(collective, MODELS[name], compress))

    for ours, expected in zip(run(tg.ErrorFeedback), run(Apart), strict=True):
        assert isinstance(ours, list), ours
        assert same(ours, expected)


def test_what_was_saved_stays():
    def body(collective):
        compress = tg.Compress(CODEC, feedback=tg.ErrorFeedback())
        steps = trained(collective, Strided, compress, steps=4)
        return [step[1] - float(torch.linalg.vector_norm(step[2]["residual"]["weight"])) for step in steps]

    for differences in on_ranks(2, body):
        assert differences == [0.0] * 4


def test_the_gradient_holds_the_new_residual_and_the_old_one_is_untouched():
    grads = {"new": torch.tensor([3.0, 1.0]), "old": torch.tensor([1.0, 2.0])}
    pointers = {name: grad.data_ptr() for name, grad in grads.items()}
    old = torch.tensor([0.5, 0.25])
    sent = {"new": torch.tensor([3.0, 0.0]), "old": torch.tensor([0.0, 2.25])}

    class Sent(tg.core.types.Sent):
        def subtract_from_(self, values):
            for name, value in values.items():
                value.sub_(sent[name])

        def __getitem__(self, name):
            return sent[name]

        def __iter__(self):
            return iter(sent)

        def __len__(self):
            return len(sent)

    def inner(values):
        return tg.core.types.Reduced(dict(sent), Sent())

    reduced = tg.ErrorFeedback().reduce_(grads, {"residual": {"old": old, "other": old}}, inner)
    held = reduced.state["residual"]
    assert held["new"].tolist() == [0.0, 1.0]
    assert held["old"].tolist() == [1.5, 0.0]
    assert {name: held[name].data_ptr() for name in grads} == pointers
    assert held["other"] is old
    assert old.tolist() == [0.5, 0.25]


def test_owns_storage():
    whole, pair = torch.zeros(4), torch.zeros(2, 2)
    grads = {
        "whole": whole,
        "transposed": torch.zeros(2, 3).t(),
        "part": torch.zeros(4)[:2],
        "shared": pair,
        "shared as well": pair.view(4),
        "empty": torch.zeros(0),
    }
    assert owns_storage(grads) == {"whole", "transposed", "empty"}


def test_gradients_that_others_hold_are_cloned_for_feedback():
    def body(collective):
        context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        compress = tg.Compress(CODEC, feedback=tg.ErrorFeedback()).resolved()
        send = sending(compress.reducer, compress.codec, context)
        grads = {"owned": torch.arange(5.0), "held": torch.arange(5.0)}
        reduced = reduce_gradients(grads, compress, {}, send, owned=frozenset({"owned"}))
        return grads, reduced.state["residual"]

    for grads, residual in run_threaded(2, body):
        assert grads["held"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert residual["held"].tolist() == [0.0, 1.0, 2.0, 3.0, 0.0]
        assert residual["owned"].data_ptr() == grads["owned"].data_ptr()
