"""What one rank alone raises is an error on every rank that names it, and all go on together."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.in_turn import in_turn
from support.waiting import patience

K, WORLD, WINDOWS, BAD = 2, 3, 4, 1
COMPRESS = tg.Compress(tg.codecs.TopK(0.5), feedback=tg.ErrorFeedback())
torch.manual_seed(0)
START = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
PLANS = {
    "dense": {},
    "skips": {"allow_skip": True},
    "one at a time": {"fetch": "batch"},
    "pieces": {"on_oom": "split"},
    "compress": {"compress": COMPRESS},
}


class BrokenError(RuntimeError):
    """What one rank raises; no error of the library's own."""


class Training:
    """One rank's loop, of which one window fails on rank 1 at one place."""

    def __init__(self, collective, place, settings):
        self.collective, self.place, self.number, self.turn = collective, place, 0, 0
        self.model, settings = copy.deepcopy(START), dict(settings)
        plan = tg.Plan(compress=settings.pop("compress", None), accumulate=tg.Accumulate(K, **settings))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        if place.startswith("pass of"):
            optimizer = torch.optim.LBFGS(self.model.parameters(), lr=0.1, max_iter=2, max_eval=4)
        before_clip = self.edit if place.startswith("before_clip") else None
        self.pipe = tg.attach(self.model, optimizer, plan, collective=collective, before_clip=before_clip)

    def edit(self, grads):
        self.fail_at("before_clip")
        for grad in grads.values():
            self.fail_at("before_clip, half done")
            grad.mul_(0.5)
        if self.place == "before_clip, other values" and self.is_bad:
            grads["2.bias"].mul_(1.001)
        if self.place == "before_clip, NaN" and self.is_bad:
            grads["2.bias"].fill_(torch.nan)

    @property
    def is_bad(self):
        return self.collective.rank == 1 and self.number == BAD

    def fail_at(self, place):
        if self.place == place and self.is_bad:
            raise BrokenError("out of luck")

    def loss_of(self, batch):
        if self.turn == K - 1:
            self.fail_at("last forward")
        self.fail_at("first forward")
        self.turn += 1
        out = self.model(batch)
        out.register_hook(lambda grad: self.fail_at("backward"))
        return out.square().mean()

    def measured(self, batch):
        """A loss that talks to the other ranks itself."""
        loss = self.loss_of(batch)
        self.metric()
        return loss

    def metric(self):
        self.collective.all_reduce_(torch.ones(3), "sum")

    def step_closed(self, window):
        """A window of LBFGS: its second pass begins at turn K."""
        self.pipe.run(window, lambda batch: self.fail_at(f"pass of turn {self.turn}") or self.loss_of(batch))

    def window(self, window, runs):
        self.turn = 0
        if runs == "closure":
            self.step_closed(window)
        elif runs == "run, measured":
            self.pipe.run(window, self.measured)
        elif runs == "skip all":
            for batch in window:
                self.pipe.skip() if self.number == BAD else self.pipe.backward(self.loss_of(batch))
            self.fail_at("before step")
            self.pipe.step()
        elif runs == "run":
            self.pipe.run(window, self.loss_of)
        elif runs == "run_cached":
            self.pipe.run_cached(window, self.loss_of_none, lambda rows: self.loss_of_rows(rows))
        else:
            for batch in window:
                self.pipe.backward(self.loss_of(batch))
            self.fail_at("before step")
            self.pipe.step()

    def loss_of_none(self, batch):
        self.fail_at("encode")
        return self.model(batch)

    def loss_of_rows(self, rows):
        self.fail_at("loss of all")
        return rows.square().mean()

    def all_windows(self, runs):
        generator = torch.Generator().manual_seed(self.collective.rank)
        batches = torch.randn(WINDOWS * K, 4, 6, generator=generator)
        told = []
        for self.number in range(WINDOWS):
            mine = batches[self.number * K : (self.number + 1) * K]
            try:
                for window in self.pipe.windows(mine):
                    self.window(window, runs)
                    if runs == "skip all":
                        break  # else the others would ask for another window, which the one that fails does not
            except (BrokenError, tg.TightGradError) as error:
                kind = tg.UsageError if isinstance(error, tg.UsageError) else type(error)
                told.append(f"{kind.__name__}: {error}")
                if runs == "run, measured" and self.is_bad:
                    for _ in range(self.turn, K):  # what the others wait for: until now they have been told nothing
                        self.metric()
                self.pipe.abandon()
        return told, [parameter.detach().clone() for parameter in self.model.parameters()]


def all_ranks(place, plan, runs):
    return tg.collectives.run_threaded(
        WORLD,
        lambda collective: Training(collective, place, PLANS[plan]).all_windows(runs),
        timeout_seconds=patience(60),
    )


run_without_failure = cache(all_ranks)
IN_LOOP = ("first forward", "last forward", "backward", "before step")
EDITS = ("before_clip", "before_clip, half done")


@pytest.mark.parametrize(
    ("plan", "runs", "place"),
    [
        *in_turn(["dense", "skips", "compress"], ["loop"], [*IN_LOOP, EDITS[0]]),
        *in_turn(["dense"], ["run", "loop"], EDITS),
        *in_turn(["dense", "pieces", "one at a time"], ["run"], IN_LOOP[:3]),
        *(("one at a time", "loop", place) for place in IN_LOOP),
        *(("dense", "run_cached", place) for place in ("encode", "loss of all")),
        *((plan, "run, measured", place) for plan in ("dense", "pieces") for place in IN_LOOP[:2]),
        *(("dense", "closure", f"pass of turn {turn}") for turn in (0, K, K + 1)),
    ],
)
def test_every_rank_is_told_who_and_why_and_the_next_window_is_right(plan, runs, place):
    results = all_ranks(place, plan, runs)
    nowhere = "before_clip elsewhere" if place in EDITS else "pass of none" if runs == "closure" else "nowhere"
    whole = run_without_failure(nowhere, plan, runs)
    for rank, (told, weights) in enumerate(results):
        assert len(told) == 1
        if rank == 1:
            assert told == ["BrokenError: out of luck"]
        else:
            assert told[0].startswith("UsageError: ")
            assert "rank 1" in told[0]
            named = "BrokenError: out of luck" in told[0]
            # Ranks that wait for the count of a window, or for representations, hear of the rank only.
            assert named or plan == "one at a time" or runs == "run_cached"
        assert all(map(torch.equal, weights, results[0][1]))
        assert not torch.equal(weights[0], whole[0][1][0])
    assert all(told == [] for told, _ in whole)


def test_nobody_waits_for_a_window_of_which_nothing_is_kept():
    results = all_ranks("before step", "skips", "skip all")
    assert [told for told, _ in results] == [[], ["BrokenError: out of luck"], []]
    (_, expected), *_ = run_without_failure("nowhere", "skips", "skip all")
    assert all(all(map(torch.equal, weights, expected)) for _, weights in results)


def test_a_weight_that_one_rank_cannot_find_for_a_piece_is_an_error_on_every_rank():
    def body(ranks):
        model, number = copy.deepcopy(START), 0

        def weight(batch):
            if number == 1 and ranks.rank == 1 and len(batch) < 4:
                raise KeyError("length")
            return float(len(batch))

        def loss_of(batch):
            if ranks.rank == 0 and len(batch) == 4:
                raise torch.OutOfMemoryError("injected: out of memory")
            return model(batch).square().mean()

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        plan = tg.Plan(tg.Accumulate(K, on_oom="split"))
        pipe, told = tg.attach(model, optimizer, plan, collective=ranks, weight=weight), []
        for number, window in enumerate(pipe.windows(torch.ones(3 * K, 4, 6))):  # cut from the first window on
            try:
                pipe.run(window, loss_of)
            except (KeyError, tg.TightGradError) as error:
                told.append((number, type(error).__name__))
                pipe.abandon()
        return told

    assert tg.collectives.run_threaded(2, body, timeout_seconds=patience(60)) == [
        [(1, "ConfigError")],
        [(1, "KeyError")],
    ]


@pytest.mark.parametrize("place", ["before_clip, other values", "before_clip, NaN"])
def test_an_edit_that_differs_over_ranks_parts_no_weights(place):
    results = all_ranks(place, "dense", "loop")
    for (told,), weights in results:
        assert told.startswith("RankMismatchError: before_clip has made different gradients on different ranks")
        assert "of '2.bias', so" in told
        assert all(map(torch.equal, weights, results[0][1]))
