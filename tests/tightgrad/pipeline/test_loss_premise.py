"""In the first window the loss is compared with those of halves: by what `attach` was given, or by what `run` cuts."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg
from support.training import on_ranks

WIDTH = 6


def model_of():
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 5))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return model


def batches(num=4, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, WIDTH, generator=generator), torch.randint(5, (size,), generator=generator))
        for _ in range(num)
    ]


def mean(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def summed(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def infonce(model, batch):
    first, second = F.normalize(model(batch[0])), F.normalize(model(batch[0] + 0.1))
    return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(first)))


def batch_norm(model, batch):
    return F.cross_entropy(F.batch_norm(model(batch[0]), None, None, training=True), batch[1])


def class_weighted(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([0.1, 1.0, 3.0, 9.0, 27.0]))


def by_hand(model, batch):
    weights = batch[0][:, 0].abs()
    return (weights * F.cross_entropy(model(batch[0]), batch[1], reduction="none")).sum() / weights.sum()


def attached(loss, *, checks, source="loader", micro_batches=4, **arguments):
    model = model_of()
    plan = tg.Plan(accumulate=tg.Accumulate(micro_batches, source=source))
    check = (lambda batch: loss(model, batch)) if checks else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, tg.attach(model, optimizer, plan, check=check, **arguments)


def by_backward(loss, loader=None, **arguments):
    model, pipe = attached(loss, **arguments)
    for window in pipe.windows(loader or batches(8)):
        for batch in window:
            pipe.backward(loss(model, batch))
        record = pipe.step()
    return record


def by_run(loss, loader=None, **arguments):
    model, pipe = attached(loss, **arguments)
    for window in pipe.windows(loader or batches(8)):
        record = pipe.run(window, lambda batch: loss(model, batch))
    return record


def said(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.category is tg.TightGradWarning for warning in caught)
    assert all(warning.filename == __file__ for warning in caught), [warning.filename for warning in caught]
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("loss", [infonce, summed, batch_norm, class_weighted, by_hand])
@pytest.mark.parametrize("source", ["loader", "split"])
def test_with_check_it_is_an_error_before_anything_is_stepped(loss, source):
    model, pipe = attached(loss, checks=True, source=source)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    draws = torch.get_rng_state()
    with pytest.raises(tg.UnsupportedError, match=r"attach\(..., check=\) has looked at the loss.*two halves"):
        next(pipe.windows(batches(1, size=24)))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(draws, torch.get_rng_state())


@pytest.mark.parametrize("drive", [by_backward, by_run])
@pytest.mark.parametrize("source", ["loader", "split"])
def test_a_mean_over_samples_passes_without_a_word(drive, source):
    assert drive(mean, checks=True, source=source, loader=batches(8, size=24)).step > 0


def test_a_check_is_made_once():
    model, calls = model_of(), []

    def check(batch):
        calls.append(len(batch[0]))
        return mean(model, batch)

    plan = tg.Plan(accumulate=tg.Accumulate(2))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, check=check)
    for window in pipe.windows(batches(6)):
        for batch in window:
            pipe.backward(mean(model, batch))
        pipe.step()
    assert calls == [6, 6, 6, 3, 3]


def test_what_cannot_be_told_is_said_once():
    def noisy(model, batch):
        return mean(model, (batch[0] + torch.randn_like(batch[0]), batch[1]))

    (text,) = said(lambda: by_backward(noisy, checks=True))
    assert "cannot be told" in text


def test_a_plan_without_accumulation_counts_samples():
    model = model_of()
    pipe = tg.attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(), check=lambda batch: mean(model, batch)
    )
    for window in pipe.windows(batches(2)):
        record = pipe.run(window, lambda batch: mean(model, batch))
    assert record.step == 1


@pytest.mark.parametrize("loss", [infonce, summed, batch_norm, class_weighted, by_hand])
def test_run_splits_nothing_that_is_no_mean(loss):
    with pytest.raises(tg.UnsupportedError, match=r'source="split" cuts a batch into micro-batches.*two halves'):
        by_run(loss, checks=False, source="split", loader=batches(1, size=24))


def test_run_leaves_the_loop_as_it_is():
    """The weights, and what is drawn afterwards, are those of a run over the same micro-batches without a look."""
    found = []
    for source in ("loader", "split"):
        torch.manual_seed(3)
        model = nn.Sequential(model_of(), nn.Dropout(0.3))
        plan = tg.Plan(accumulate=tg.Accumulate(4, source=source))
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
        whole = batches(2, size=24)
        pieces = [pair for batch in whole for pair in zip(*(part.split(6) for part in batch), strict=True)]
        for window in pipe.windows(whole if source == "split" else pieces):
            pipe.run(window, lambda batch: mean(model, batch))  # noqa: B023
        found.append([*[parameter.detach() for parameter in model.parameters()], torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def in_place(model, batch):
    """Uses the batch up, as loops do with batches that they get once."""
    parts = [*batch]
    return mean(model, (parts[0].mul_(2), parts.pop()))


def drawing(model, batch):
    return mean(model, (batch[0] + torch.randn_like(batch[0]), batch[1]))


def low(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return mean(model, batch)


def only_micro_batches(model, batch):
    """For one number of samples, as compiled for it."""
    return F.cross_entropy(model(batch[0].view(6, WIDTH)), batch[1])


@pytest.mark.parametrize(
    "loss", [mean, in_place, drawing, low, only_micro_batches, lambda model, b: mean(model, b) / 4]
)
@pytest.mark.parametrize("weight", [None, lambda batch: 1.0])
def test_what_run_may_split_passes_without_a_word(loss, weight):
    def call():
        record = by_run(loss, checks=False, source="split", loader=batches(2, size=24), weight=weight)
        assert (record.step, record.micro_batches) == (1, 4)

    assert said(call) == []


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("loss", [mean, in_place])
def test_micro_batches_that_count_the_same_may_be_checked(loss, size):
    assert said(lambda: by_backward(loss, checks=True, loader=batches(8, size=size), weight=lambda batch: 1.0)) == []


def test_a_first_batch_that_overflows_is_left_to_the_guard():
    model = model_of()
    plan = tg.Plan(accumulate=tg.Accumulate(4, source="split"), guard=tg.Guard(on_nonfinite="skip"))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    first, second = batches(2, size=24)
    found, loader = [], [(first[0] * torch.inf, first[1]), second]
    assert said(lambda: found.extend(pipe.run(w, lambda b: mean(model, b)) for w in pipe.windows(loader))) == []
    assert [record.skipped for record in found] == [True, False]


def test_batch_norm_that_attach_has_told_of_may_be_split():
    model = nn.Sequential(nn.BatchNorm1d(WIDTH), model_of())
    plan = tg.Plan(accumulate=tg.Accumulate(4, source="split"))
    with pytest.warns(tg.TightGradWarning, match="BatchNorm in training mode"):
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    for window in pipe.windows(batches(2, size=24)):
        record = pipe.run(window, lambda batch: mean(model, batch))
    assert record.step == 1


class OverTime(nn.Module):
    """One sequence a micro-batch: its rows follow each other, and half of it is another one."""

    def __init__(self):
        super().__init__()
        self.cell, self.last = nn.LSTM(WIDTH, 8), nn.Linear(8, 5)

    def forward(self, inputs):
        return self.last(self.cell(inputs)[0])


class OverNodes(nn.Module):
    """One graph a micro-batch, whose nodes attend to each other."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, 5)

    def forward(self, inputs):
        nodes = self.first(inputs)
        return self.last((nodes @ nodes.T).softmax(1) @ nodes)


def scaled_weights():
    """Whose weights are computed, with sizes that are multiples of the batch's."""
    wide = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 12))
    return nn.Sequential(wide, nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(12, 6)))


@pytest.mark.parametrize("make", [OverTime, OverNodes, scaled_weights])
@pytest.mark.parametrize("by", ["run", "backward"])
def test_micro_batches_of_the_loader_are_the_users(make, by):
    """They are right as they are: the target is the sum over sequences, and not over their halves."""

    def call():
        model = make()
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(accumulate=tg.Accumulate(2)))
        for window in pipe.windows(batches(4)):
            if by == "run":
                pipe.run(window, lambda batch: mean(model, batch))
                continue
            for batch in window:
                pipe.backward(mean(model, batch))
            pipe.step()

    assert said(call) == []


@pytest.mark.parametrize(
    ("check", "match"),
    [(3.0, "check=3.0 must be a function"), (lambda: None, "check must take one argument"), (True, "check=True")],
)
def test_a_check_is_a_function_of_a_batch(check, match):
    model = model_of()
    with pytest.raises(tg.ConfigError, match=match):
        tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(), check=check)


def test_all_ranks_hear_of_what_one_sees():
    def body(collective):
        loss = infonce if collective.rank == 1 else mean
        by_backward(loss, checks=True, collective=collective, loader=batches(4, seed=collective.rank))

    first, second = on_ranks(2, body)
    assert isinstance(first, tg.UnsupportedError)
    assert "another rank (1)" in str(first)
    assert isinstance(second, tg.UnsupportedError)


def test_a_rank_without_batches_takes_part():
    def body(collective):
        loader = batches(4) if collective.rank == 0 else iter(())
        return by_backward(mean, checks=True, collective=collective, loader=loader).weight

    assert on_ranks(2, body) == [24.0, 24.0]


def test_a_loader_that_fails_on_one_rank_is_told_as_without_a_check():
    def failing():
        raise OSError("no such file")
        yield

    def body(collective):
        loader = batches(4) if collective.rank == 0 else failing()
        return by_backward(mean, checks=True, collective=collective, loader=loader)

    first, second = on_ranks(2, body)
    assert "rank 1 failed while fetching" in str(first)
    assert isinstance(second, OSError)


def contrast(micro_batches):
    """Warnings of a loop that accumulates InfoNCE."""
    torch.manual_seed(0)
    encoder = nn.Linear(8, 4)
    plan = tg.Plan(accumulate=tg.Accumulate(micro_batches), clip=tg.clip.GlobalNorm(1.0))
    pipe = tg.attach(encoder, torch.optim.SGD(encoder.parameters(), lr=0.1), plan)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for window in pipe.windows([(torch.randn(6, 8), torch.randn(6, 8)) for _ in range(8)]):
            for one, other in window:
                pipe.backward(F.cross_entropy(encoder(one) @ encoder(other).T, torch.arange(6)))
            pipe.step()
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_contrastive_loss_that_is_accumulated_in_a_loop_is_told_once():
    (said,) = contrast(micro_batches=4)
    assert "pipe.run_cached(window, encode, loss)" in said


def test_one_that_is_not_cut_is_left_alone():
    assert contrast(micro_batches=1) == []


def test_run_cached_which_sees_all_samples_is_not_told_to_be_itself():
    torch.manual_seed(0)
    encoder = nn.Linear(8, 4)
    plan = tg.Plan(accumulate=tg.Accumulate(4))
    pipe = tg.attach(encoder, torch.optim.SGD(encoder.parameters(), lr=0.1), plan)

    def loss(towers):
        one, other = (F.normalize(tower, dim=-1) for tower in towers)
        return F.cross_entropy(one @ other.T, torch.arange(len(one)))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for window in pipe.windows([(torch.randn(6, 8), torch.randn(6, 8)) for _ in range(16)]):
            record = pipe.run_cached(window, lambda batch: tuple(map(encoder, batch)), loss)
    assert [str(warning.message) for warning in caught] == []
    assert record.micro_batches == 4
