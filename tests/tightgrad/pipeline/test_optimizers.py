"""Several optimizers in one pipeline: one window, one guard, one norm, and a step of each."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg

K = 3
WITH_CLIP = tg.Plan(accumulate=tg.Accumulate(K), clip=tg.clip.GlobalNorm(0.1))


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype)


def ragged(count=2 * K):
    torch.manual_seed(1)
    return [(torch.randn(2 + i % 3, 6), torch.randn(2 + i % 3, 4)) for i in range(count)]


def loss_of(model, batch):
    inputs, target = (tensor.to(next(model.parameters()).dtype) for tensor in batch)
    return F.mse_loss(model(inputs), target)


def matrices(model):
    return [parameter for parameter in model.parameters() if parameter.dim() == 2]


def vectors(model):
    return [parameter for parameter in model.parameters() if parameter.dim() != 2]


PAIRS = {
    "muon and adamw": lambda m: [torch.optim.Muon(matrices(m), lr=0.02), torch.optim.AdamW(vectors(m), lr=0.02)],
    "fused and not": lambda m: [
        torch.optim.AdamW(matrices(m), lr=0.02, fused=True),
        torch.optim.SGD(vectors(m), lr=0.1, momentum=0.9),
    ],
    "both fused": lambda m: [
        torch.optim.SGD(vectors(m), lr=0.1, fused=True),
        torch.optim.Adam(matrices(m), lr=0.02, fused=True),
    ],
    "one for each": lambda m: [torch.optim.SGD([p], lr=0.1) for p in m.parameters()],
}


def by_hand(model, optimizers, data, max_norm):
    """The big batch of each window, clipped by one norm over all parameters."""
    for start in range(0, len(data), K):
        window = data[start : start + K]
        samples = sum(len(inputs) for inputs, _ in window)
        for batch in window:
            (loss_of(model, batch) * len(batch[0]) / samples).backward()
        tg.clip_grad_norm_(model.parameters(), max_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def train(pipe, model, data):
    records = []
    for window in pipe.windows(data):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        records.append(pipe.step())
    return records


@pytest.mark.parametrize("pair", PAIRS)
def test_each_steps_with_gradients_clipped_by_one_norm(pair):
    expected, model = net(), net()
    by_hand(expected, PAIRS[pair](expected), ragged(), 0.1)
    records = train(tg.attach(model, PAIRS[pair](model), WITH_CLIP), model, ragged())
    assert [record.clip_coef < 1 for record in records] == [True, True]
    assert all(record.grad_norm > 0.1 for record in records)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


class Seen(torch.optim.SGD):
    """Remembers the gradients that it was given."""

    def step(self, closure=None):
        self.seen = [parameter.grad.double().clone() for group in self.param_groups for parameter in group["params"]]
        super().step()


@pytest.mark.parametrize("clip", [None, tg.clip.GlobalNorm(0.1), tg.clip.AGC(0.01), tg.clip.Value(0.01)], ids=str)
def test_the_gradients_are_those_of_one_optimizer(clip):
    plan = tg.Plan(accumulate=tg.Accumulate(K), clip=clip)
    one, several = net(), net()
    alone = Seen([*matrices(one), *vectors(one)], lr=0.1)
    both = [Seen(matrices(several), lr=0.1), Seen(vectors(several), lr=0.1)]
    train(tg.attach(one, alone, plan), one, ragged())
    train(tg.attach(several, both, plan), several, ragged())
    for ours, theirs in zip([*both[0].seen, *both[1].seen], alone.seen, strict=True):
        assert torch.equal(ours, theirs)


def test_the_gradient_is_that_of_the_big_batch_in_float64():
    model, target = net(), net(torch.float64)
    both = [Seen(matrices(model), lr=0.1), Seen(vectors(model), lr=0.1)]
    data = ragged(K)
    F.mse_loss(target(torch.cat([x for x, _ in data]).double()), torch.cat([y for _, y in data]).double()).backward()
    train(tg.attach(model, both, tg.Plan(accumulate=tg.Accumulate(K))), model, data)
    expected = [parameter.grad for parameter in [*matrices(target), *vectors(target)]]
    for ours, theirs in zip([*both[0].seen, *both[1].seen], expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


def test_a_list_of_one_is_that_one():
    models = [net(), net()]
    for model, form in zip(models, (lambda o: o, lambda o: [o]), strict=True):
        pipe = tg.attach(model, form(torch.optim.SGD(model.parameters(), lr=0.1)), WITH_CLIP)
        assert isinstance(pipe.optimizer, torch.optim.SGD)
        train(pipe, model, ragged())
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def test_the_only_optimizer_is_not_asked_for_where_there_are_several():
    model = net()
    pipe = tg.attach(model, PAIRS["muon and adamw"](model), WITH_CLIP)
    assert [type(optimizer).__name__ for optimizer in pipe.optimizers] == ["Muon", "AdamW"]
    with pytest.raises(tg.UsageError, match=r"2 optimizers \(Muon, AdamW\); take pipe.optimizers"):
        _ = pipe.optimizer


@pytest.mark.parametrize("which", [0, 1])
def test_none_of_them_may_be_stepped_from_outside(which):
    model = net()
    both = PAIRS["muon and adamw"](model)
    pipe = tg.attach(model, both, WITH_CLIP)
    before = copy.deepcopy(model.state_dict())
    for window in pipe.windows(ragged(K)):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        with pytest.raises(tg.UsageError, match="called from outside"):
            both[which].step()
        assert all(map(torch.equal, model.state_dict().values(), before.values()))
        pipe.step()
    pipe.close()
    both[which].step()


def test_one_that_is_not_finite_skips_all():
    model = net()
    both = PAIRS["fused and not"](model)
    plan = tg.Plan(accumulate=tg.Accumulate(K), guard=tg.Guard("skip"), clip=tg.clip.GlobalNorm(0.1))
    pipe = tg.attach(model, both, plan)
    data = ragged()
    data[1][0][0, 0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    windows = iter(pipe.windows(data))
    for batch in (window := next(windows)):
        pipe.backward(loss_of(model, batch))
    assert window.total_weight > 0
    assert pipe.step().skipped
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert not both[0].state
    assert not both[1].state
    for batch in next(windows):
        pipe.backward(loss_of(model, batch))
    assert not pipe.step().skipped


class TestSchedulers:
    def test_each_has_its_own(self):
        model = net()
        both = PAIRS["muon and adamw"](model)
        schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma) for optimizer, gamma in zip(both, (0.5, 0.1))]  # noqa: B905
        train(tg.attach(model, both, WITH_CLIP, scheduler=schedules), model, ragged())
        assert [optimizer.param_groups[0]["lr"] for optimizer in both] == pytest.approx([0.02 * 0.25, 0.02 * 0.01])

    def test_one_may_have_one(self):
        model = net()
        both = PAIRS["muon and adamw"](model)
        schedule = torch.optim.lr_scheduler.StepLR(both[1], 1, 0.1)
        train(tg.attach(model, both, WITH_CLIP, scheduler=schedule), model, ragged())
        assert [optimizer.param_groups[0]["lr"] for optimizer in both] == pytest.approx([0.02, 0.02 * 0.01])

    def test_one_of_an_optimizer_that_is_not_attached_is_refused(self):
        model = net()
        other = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net().parameters(), lr=0.1), 1)
        with pytest.raises(tg.ConfigError, match="not the Muon and AdamW"):
            tg.attach(model, PAIRS["muon and adamw"](model), WITH_CLIP, scheduler=[other])


class TestWhoHoldsWhat:
    def test_a_parameter_in_two_is_refused(self):
        model = net()
        both = [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.AdamW(vectors(model), lr=0.1)]
        with pytest.raises(tg.UsageError, match=r"'0.bias' is in 2 of the optimizers \(SGD and AdamW\)"):
            tg.attach(model, both, WITH_CLIP)

    def test_one_that_holds_nothing_of_the_model_is_refused(self):
        model = net()
        both = [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.AdamW(net().parameters(), lr=0.1)]
        with pytest.raises(tg.UsageError, match=r"the optimizer \(AdamW\) holds none"):
            tg.attach(model, both, WITH_CLIP)

    def test_one_that_holds_others_as_well_is_refused(self):
        model = net()
        head = nn.Linear(4, 2)
        both = [torch.optim.SGD(matrices(model), lr=0.1), torch.optim.AdamW([*vectors(model), head.weight], lr=0.1)]
        with pytest.raises(tg.UsageError, match="an optimizer holds 1 parameter"):
            tg.attach(model, both, WITH_CLIP)

    def test_what_none_holds_is_named(self):
        model = net()
        both = [torch.optim.SGD([model[0].weight], lr=0.1), torch.optim.AdamW([model[2].weight], lr=0.1)]
        with pytest.warns(tg.TightGradWarning, match="not in any of the optimizers: '0.bias', '2.bias'"):
            tg.attach(model, both, WITH_CLIP)

    def test_a_loss_with_parameters_is_a_part_of_the_model(self):
        model, scale = net(), nn.Linear(1, 1)
        whole = nn.ModuleList([model, scale])
        both = [torch.optim.AdamW(model.parameters(), lr=0.1), torch.optim.SGD(scale.parameters(), lr=0.1)]
        pipe = tg.attach(whole, both, WITH_CLIP)
        before = scale.weight.detach().clone()
        for window in pipe.windows(ragged(K)):
            for batch in window:
                pipe.backward(scale(loss_of(model, batch).view(1, 1)).square().mean())
            pipe.step()
        assert not torch.equal(before, scale.weight)

    def test_fold_on_asks_each(self):
        model = net()
        plan = tg.Plan(clip=tg.clip.GlobalNorm(0.1, fold="on"))
        tg.attach(model, PAIRS["both fused"](model), plan).close()
        with pytest.raises(tg.ConfigError, match='fold="on"'):
            tg.attach(model, PAIRS["fused and not"](model), plan)


def test_a_run_that_is_resumed_is_the_same():
    plan = tg.Plan(
        accumulate=tg.Accumulate(K),
        compress=tg.Compress(tg.codecs.TopK(0.2), feedback=tg.ErrorFeedback()),
        clip=tg.clip.GlobalNorm(0.1),
    )
    whole, first = net(), net()
    train(tg.attach(whole, PAIRS["muon and adamw"](whole), plan), whole, ragged(4 * K))
    both = PAIRS["muon and adamw"](first)
    pipe = tg.attach(first, both, plan)
    train(pipe, first, ragged(4 * K)[: 2 * K])
    saved = copy.deepcopy((first.state_dict(), [optimizer.state_dict() for optimizer in both], pipe.state_dict()))
    second = net()
    second.load_state_dict(saved[0])
    both = PAIRS["muon and adamw"](second)
    for optimizer, state in zip(both, saved[1], strict=True):
        optimizer.load_state_dict(state)
    pipe = tg.attach(second, both, plan)
    pipe.load_state_dict(saved[2])
    train(pipe, second, ragged(4 * K)[2 * K :])
    assert all(map(torch.equal, second.parameters(), whole.parameters()))
