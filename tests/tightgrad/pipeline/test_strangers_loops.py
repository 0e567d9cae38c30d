"""Loops as people write them, against the loop by hand in float64: parametrised layers, functional calls, copies."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import tightgrad as tg

K = 4
PLAN = tg.Plan(accumulate=tg.Accumulate(K), clip=tg.clip.GlobalNorm(0.5))


def data(count=2 * K):
    generator = torch.Generator().manual_seed(1)
    sizes = [2 + i % 3 for i in range(count)]
    return [tuple(torch.randn(n, m, generator=generator, dtype=torch.float64) for m in (6, 3)) for n in sizes]


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def squares(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def by_hand(model, optimizer, loss_of, after=lambda: None):
    batches = data()
    for start in range(0, len(batches), K):
        window = batches[start : start + K]
        samples = sum(len(inputs) for inputs, _ in window)
        for batch in window:
            (loss_of(model, batch) * len(batch[0]) / samples).backward()
        tg.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 0.5)
        optimizer.step()
        optimizer.zero_grad()
        after()


def by_pipe(model, optimizer, loss_of, after=lambda: None, change=lambda: None):
    pipe = tg.attach(model, optimizer, PLAN)
    change()
    for window in pipe.windows(data()):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        record = pipe.step()
        after()
    return record


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = net()[0], nn.Linear(6, 8).double(), net()[2]
        self.second.weight = self.first.weight
        nn.init.zeros_(self.second.bias)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x) + self.second(x)))


class LowRank(nn.Module):
    """A frozen layer with an addition of low rank."""

    def __init__(self):
        super().__init__()
        self.base = net().requires_grad_(False)
        self.a, self.b = nn.Parameter(self.base[0].weight[:2].clone()), nn.Parameter(torch.zeros(3, 2).double())

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


def with_first(make):
    model = net()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the vectors that begin the power iteration
        model[0] = make(model[0])
    return model


MODELS = {
    "spectral norm": lambda: with_first(nn.utils.parametrizations.spectral_norm),
    "weight norm": lambda: with_first(nn.utils.parametrizations.weight_norm),
    "tied": Tied,
    "low rank": LowRank,
}


def penalised(model, batch):
    inputs = batch[0].clone().requires_grad_()
    scores = model(inputs)
    (slope,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return F.mse_loss(scores, batch[1]) + 0.1 * slope.square().sum(1).mean()


def functional(model, batch):
    return F.mse_loss(torch.func.functional_call(model, dict(model.named_parameters()), (batch[0],)), batch[1])


def per_sample(model, batch):
    named = dict(model.named_parameters())

    def one(x, y):
        return F.mse_loss(torch.func.functional_call(model, named, (x[None],)), y[None])

    return torch.func.vmap(one)(*batch).mean()


def recomputed(model, batch):
    return F.mse_loss(model[2](checkpoint(lambda x: model[1](model[0](x)), batch[0], use_reentrant=False)), batch[1])


def evaluated_between(model, batch):
    model.eval()
    with torch.no_grad():
        model(batch[0])
    model.train()
    probe = batch[0].clone().requires_grad_()
    torch.autograd.grad(model(probe).sum(), probe)
    return squares(model, batch)


def distilled(model, batch):
    with torch.no_grad():
        soft = (net()(batch[0]) * 3).softmax(1)
    return F.kl_div((model(batch[0]) / K).log_softmax(1), soft, reduction="batchmean") * K * K


LOSSES = (squares, penalised, functional, per_sample, recomputed, evaluated_between, distilled)


@pytest.mark.parametrize(
    ("make", "loss_of"),
    [*((make, squares) for make in MODELS.values()), *((net, loss_of) for loss_of in LOSSES)],
)
def test_it_is_the_loop_by_hand(make, loss_of):
    reference, model = make(), make()
    by_hand(reference, torch.optim.AdamW(reference.parameters(), lr=0.01), loss_of)
    by_pipe(model, torch.optim.AdamW(model.parameters(), lr=0.01), loss_of)
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-12, atol=1e-14)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrised(model):
    nn.utils.parametrize.register_parametrization(model[0], "weight", Half())


def loaded(model):
    model.load_state_dict({name: value / 2 for name, value in model.state_dict().items()})


def moved(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5


@pytest.mark.parametrize("change", [parametrised, loaded, moved, nn.Module.eval])
def test_what_is_done_to_the_model_after_attach_counts(change):
    reference, model = net(), net()
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (reference, model)]
    change(reference)
    by_hand(reference, optimizers[0], squares)
    by_pipe(model, optimizers[1], squares, change=lambda: change(model))
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-12, atol=1e-14)


def test_averaged_weights_are_those_of_the_loop_by_hand():
    found = []
    for loop in (by_hand, by_pipe):
        model = net()
        averaged = torch.optim.swa_utils.AveragedModel(model, torch.device("cpu"), lambda old, new, _: (old + new) / 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loop(model, optimizer, squares, after=lambda a=averaged, m=model: a.update_parameters(m))
        found.append(flat(averaged))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda model, batch: squares(net(), batch),
        lambda model, batch: squares(copy.deepcopy(model), batch),
        lambda model, batch: torch.tensor(squares(model, batch).item(), requires_grad=True),
        lambda model, batch: squares(model, batch).detach().requires_grad_() * 2,
    ],
)
def test_a_loss_of_something_else_is_told_and_nothing_moves(loss_of):
    model = net()
    with pytest.raises(tg.UsageError, match="no parameter of this pipeline has a gradient"):
        by_pipe(model, torch.optim.AdamW(model.parameters(), lr=0.1), loss_of)
    assert torch.equal(flat(model), flat(net()))


def drop_group(optimizer):
    del optimizer.param_groups[1]


def drop_parameter(optimizer):
    optimizer.param_groups[1]["params"].pop()


def clear(optimizer):
    optimizer.param_groups.clear()


@pytest.mark.parametrize("drop", [drop_group, drop_parameter, clear])
def test_a_parameter_that_leaves_the_optimizer_is_named(drop):
    model = net()
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1)
    pipe = tg.attach(model, optimizer, PLAN)
    drop(optimizer)
    with pytest.raises(tg.UsageError, match="taken out of the optimizer since attach"):
        next(pipe.windows(data()))


def test_a_frozen_parameter_may_leave_the_optimizer():
    model = net()
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1)
    pipe = tg.attach(model, optimizer, PLAN)
    model[2].requires_grad_(False)
    drop_group(optimizer)
    for window in pipe.windows(data()):
        for batch in window:
            pipe.backward(squares(model, batch))
        pipe.step()
    assert pipe.state.step == 2


def test_a_pipeline_is_shared_by_copies_and_not_pickled():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.pipe = pipe = tg.attach(model, optimizer, PLAN)
    assert copy.deepcopy(model).pipe is pipe
    for container in (pipe, model, {"pipe": pipe}):
        with pytest.raises(tg.UsageError, match=r"cannot be pickled; save it with pipe.save\(folder\)"):
            pickle.dumps(container)
    del model.pipe
    again, _ = pickle.loads(pickle.dumps((model, optimizer)))
    assert torch.equal(flat(again), flat(model))
