"""A loop that is saved by one call and taken up by one: to the bit as if it had not stopped."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import tightgrad as tg
from support.in_turn import in_turn
from support.resuming import Run, compared, differences

TOPK = tg.Compress(tg.codecs.TopK(0.2), feedback=tg.ErrorFeedback())
FULL = tg.Plan(tg.Accumulate(2), TOPK, tg.clip.GlobalNorm(0.5))
BATCHES = [torch.randn(4, 6, generator=torch.Generator().manual_seed(number)) for number in range(12)]


def net(dropout=0.3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))


def loss_of(model, batch):
    return model(batch).float().square().mean()


def adamw_with_a_schedule():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=9)
    return Run(model, [optimizer], tg.attach(model, optimizer, FULL, scheduler=scheduler), loss_of)


def several_optimizers():
    model = net()
    muon = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.02)
    adamw = torch.optim.AdamW([{"params": [p]} for p in model.parameters() if p.ndim == 1], lr=0.02)
    schedulers = [torch.optim.lr_scheduler.StepLR(one, 2) for one in (muon, adamw)]
    return Run(model, [muon, adamw], tg.attach(model, [muon, adamw], FULL, scheduler=schedulers), loss_of)


def a_scaler():
    model, scaler = net(), GradScaler("cpu", init_scale=256.0, growth_interval=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, dampening=0.5)
    plan = tg.Plan(tg.Accumulate(2), guard=tg.Guard("skip"))
    return Run(model, [optimizer], tg.attach(model, optimizer, plan, scaler=scaler), loss_of)


def its_own_loss_scale_and_a_schedule_by_metric():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    plan = tg.Plan(tg.Accumulate(2), clip=tg.clip.AutoClip(history=4), loss_scale=tg.LossScale(growth_interval=2))
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return Run(
        model, [optimizer], tg.attach(model, optimizer, plan), loss_of, {"scheduler": plateau},
        lambda record: plateau.step(record.loss),
    )  # fmt: skip


class Float32Momentum(torch.optim.Optimizer):
    """Keeps float32 momentum of bfloat16 parameters, which torch's own load_state_dict would round."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state.setdefault("inner", {"count": torch.zeros((), dtype=torch.int32)})["count"] += 1
            state["momentum"] = state.get("momentum", 0.0) * 0.9 + parameter.grad.float() / 3
            parameter.sub_(0.1 * state["momentum"])


def float32_state_of_bfloat16():
    model = net().bfloat16()
    optimizer = Float32Momentum(model.parameters())
    loss = lambda model, batch: loss_of(model, batch.bfloat16())  # noqa: E731
    return Run(model, [optimizer], tg.attach(model, optimizer, FULL), loss)


class Tied(nn.Module):
    """Tied weights, frozen weights and a layer that is used only later: AdamW has no state for it before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.frozen = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.late, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.other.weight = self.one.weight
        self.frozen.requires_grad_(False)
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        hidden = self.frozen(self.other(self.norm(self.one(inputs))))
        return self.late(hidden) if self.calls > 8 else hidden

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


@pytest.mark.filterwarnings("ignore:BatchNorm")
def tied_frozen_and_late():
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    return Run(model, [optimizer], tg.attach(model, optimizer, FULL), loss_of)


def measured_noise():
    model = net()
    optimizer = torch.optim.NAdam(model.parameters(), lr=0.02)
    plan = tg.Plan(tg.Accumulate(2), noise_scale=tg.scaling.NoiseScale(), clip=tg.clip.ZClip())
    return Run(model, [optimizer], tg.attach(model, optimizer, plan), loss_of)


def compiled():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    wrapped = torch.compile(model, backend="eager")
    return Run(wrapped, [optimizer], tg.attach(wrapped, optimizer, FULL), loss_of)


def an_empty_plan():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    return Run(model, [optimizer], tg.attach(model, optimizer, tg.Plan()), loss_of)


def averages_and_generators():
    """What a loop has beside: averaged weights, generators of its own, NumPy's and Python's global ones, a counter."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    extra = {
        "ema": ema,
        "torch": torch.Generator().manual_seed(3),
        "numpy": np.random.default_rng(3),
        "python": random.Random(3),
        "progress": {"steps": 0, "best": torch.tensor(9.0)},
    }

    def loss(model, batch):
        noise = torch.rand(4, 6, generator=extra["torch"]) + extra["numpy"].random() + extra["python"].random()
        return loss_of(model, batch + noise + np.random.random() + random.random())

    def after_step(record):
        ema.update_parameters(model)
        extra["progress"]["steps"] += 1
        extra["progress"]["best"] = torch.minimum(extra["progress"]["best"], torch.tensor(record.loss))

    return Run(model, [optimizer], tg.attach(model, optimizer, FULL), loss, {"extra": extra}, after_step)


def two_pipelines():
    """A GAN's: the second model, its optimizer and its pipeline are extras."""
    model, other = net(), net()
    optimizer, second = torch.optim.AdamW(model.parameters()), torch.optim.AdamW(other.parameters())
    other_pipe = tg.attach(other, second, FULL)

    def after_step(record):
        for window in other_pipe.windows(BATCHES[:2]):
            for batch in window:
                other_pipe.backward(loss_of(other, batch))
            other_pipe.step()

    extra = {"d": other, "d_optimizer": second, "d_pipe": other_pipe}
    return Run(model, [optimizer], tg.attach(model, optimizer, FULL), loss_of, {"extra": extra}, after_step)


LOOPS = [
    adamw_with_a_schedule,
    several_optimizers,
    a_scaler,
    its_own_loss_scale_and_a_schedule_by_metric,
    float32_state_of_bfloat16,
    tied_frozen_and_late,
    measured_noise,
    compiled,
    an_empty_plan,
    averages_and_generators,
    two_pipelines,
]


def seeded(make):
    run = make()
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    return run


@pytest.mark.filterwarnings("ignore:BatchNorm")
# After 0 batches before the first step, after 4 between steps, after 5 in a window.
@pytest.mark.parametrize(("make", "stop"), in_turn(LOOPS, [5, 0, 4]))
def test_a_run_goes_on_to_the_bit(tmp_path, make, stop):
    straight = seeded(make)
    records = straight.train(BATCHES)
    stopped = seeded(make)
    stopped.train(BATCHES, stop)
    before = stopped.state()
    stopped.save(tmp_path)
    assert not differences(before, stopped.state()), "a save has changed something"

    resumed = make()
    first = resumed.load(tmp_path)
    assert first == stop - stop % (resumed.pipe.parts.plan.accumulate.micro_batches or 1)
    later = resumed.train(BATCHES[first:])
    assert not differences(straight.state(), resumed.state())
    assert compared(records[-len(later) :]) == compared(later)


def test_going_on_after_a_save_is_as_without_it(tmp_path):
    straight = seeded(adamw_with_a_schedule)
    records = compared(straight.train(BATCHES))
    saved = seeded(adamw_with_a_schedule)
    later = []
    for window in saved.pipe.windows(BATCHES):
        for batch in window:
            saved.pipe.backward(loss_of(saved.model, batch))
            saved.save(tmp_path, keep=1)
        later.append(saved.pipe.step())
    assert not differences(straight.state(), saved.state())
    assert records == compared(later)


# The place in the loader
class Shuffled:
    """Gives its batches in another order each epoch, and knows where it is."""

    def __init__(self):
        self.epoch, self.place = 0, 0

    def __iter__(self):
        torch.rand(())  # as torch's DataLoader draws a seed
        return self.batches()

    def batches(self):
        order = np.random.default_rng(self.epoch).permutation(len(BATCHES))
        while self.place < len(order):
            self.place += 1
            yield BATCHES[order[self.place - 1]]
        self.epoch, self.place = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state):
        self.epoch, self.place = state["epoch"], state["place"]


def train_epochs(run, loader, stop_after=None, first=0):
    """Two epochs and a half; the records."""
    records = []
    while run.pipe.state.step < 15:
        start = loader if not first else itertools.islice(loader, first, None)
        first = 0
        for window in run.pipe.windows(start):
            for batch in window:
                run.pipe.backward(loss_of(run.model, batch))
            records.append(run.pipe.step())
            if run.pipe.state.step in (stop_after, 15):
                return records
    return records


@pytest.mark.parametrize("stop", [4, 6, 7], ids=["in an epoch", "at its end", "in the next"])
def test_a_loader_with_state_goes_on_where_it_was(tmp_path, stop):
    straight = seeded(adamw_with_a_schedule)
    straight.pipe.parts.optimizer.schedulers = ()
    records = train_epochs(straight, Shuffled())
    stopped, loader = seeded(adamw_with_a_schedule), Shuffled()
    stopped.pipe.parts.optimizer.schedulers = ()
    train_epochs(stopped, loader, stop)
    stopped.save(tmp_path, loader=loader)
    resumed, again = adamw_with_a_schedule(), Shuffled()
    resumed.pipe.parts.optimizer.schedulers = ()
    assert resumed.load(tmp_path, loader=again) == 0
    assert compared(train_epochs(resumed, again)) == compared(records[stop:])


def test_without_its_state_the_batches_are_counted(tmp_path):
    """torch's loader draws a seed from the global generator when it starts, which must not shift the dropout masks."""
    data = TensorDataset(torch.cat(BATCHES))

    def loader():
        return DataLoader(data, 4, collate_fn=lambda rows: torch.stack([row for (row,) in rows]))

    straight = seeded(adamw_with_a_schedule)
    records = straight.train(loader())
    stopped = seeded(adamw_with_a_schedule)
    stopped.train(loader(), 4)
    stopped.save(tmp_path, loader=loader())
    for batches in (lambda first: itertools.islice(loader(), first, None), lambda first: list(loader())[first:]):
        resumed = adamw_with_a_schedule()
        first = resumed.load(tmp_path, loader=loader())
        assert first == 4
        assert compared(resumed.train(batches(first))) == compared(records[2:])


def test_a_loader_with_state_is_not_saved_in_the_middle_of_a_window(tmp_path):
    run = adamw_with_a_schedule()
    loader = Shuffled()
    run.train(loader, 3)
    with pytest.raises(tg.UsageError, match=r"save after pipe.step\(\), or leave loader out"):
        run.save(tmp_path, loader=loader)
    assert not list(tmp_path.iterdir())
    run.save(tmp_path)
    assert run.load(tmp_path) == 2
