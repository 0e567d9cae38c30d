"""What `tg.save` and `tg.load` refuse: in words, on every rank, and with nothing changed."""

import os
import re
import shutil

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.resuming import Run, compared, differences
from support.training import on_ranks
from tightgrad.checkpoint import folder as checkpoint
from tightgrad.collectives import dcp

PLAN = tg.Plan(tg.Accumulate(2), tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback()), tg.clip.GlobalNorm(0.5))


def batches(num=8, rank=0):
    return [torch.randn(4, 6, generator=torch.Generator().manual_seed(100 * rank + number)) for number in range(num)]


class Net(nn.Module):
    """The same weights on every call, also in threads; a buffer that differs by rank."""

    def __init__(self, width=8, last="last"):
        super().__init__()
        self.first = nn.Linear(6, width)
        self.add_module(last, nn.Linear(width, 2))
        self.register_buffer("seen", torch.zeros(()))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, inputs):
        first, last = self.children()
        self.seen += inputs.sum()
        return last(first(inputs))


def loss_of(model, batch):
    return model(batch.to(model.first.weight.dtype)).float().square().mean()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def in_two_groups(model):
    first, *others = model.parameters()
    return torch.optim.AdamW([{"params": [first]}, {"params": others}], lr=0.02)


def step_lr(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 2)


def made(collective=None, model=Net, optimizer=adamw, plan=PLAN, scheduler=step_lr, extra=None):
    net = model()
    stepped = optimizer(net)
    pipe = tg.attach(net, stepped, plan, collective=collective, scheduler=scheduler(stepped))
    return Run(net, [stepped], pipe, loss_of, {"extra": {"counts": {"epoch": 0}} if extra is None else extra})


def saved(collective, folder, num=4, **settings):
    run = made(collective, **settings)
    run.train(batches(num, collective.rank))
    run.save(folder)
    return run


def refused(collective, folder, **settings):
    """What loading raises, if it changes nothing."""
    run = made(collective, **settings)
    before = run.state()
    try:
        run.load(folder)
    except tg.TightGradError as error:
        assert not differences(before, run.state())
        return error
    return "loaded"


CHANGES = {
    "a layer's name": ({"model": lambda: Net(last="head")}, "the model .* 'last.weight' was saved, and is not there"),
    "a shape": ({"model": lambda: Net(9)}, r"'first.weight' was saved as \(8, 6\) torch.float32, and is \(9, 6\)"),
    "a dtype": ({"model": lambda: Net().bfloat16()}, r"was saved as \(8, 6\) torch.float32, and is \(8, 6\) torch.bf"),
    "the optimizer": (
        {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1)},
        r"optimizer 0 \(SGD\) is not the one that was saved: a AdamW was saved, and it is a SGD",
    ),
    "its groups": ({"optimizer": in_two_groups}, "1 parameter groups were saved, and it has 2"),
    "the scheduler": (
        {"scheduler": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)},
        "a StepLR was saved, and it is a ExponentialLR",
    ),
    "no scheduler": ({"scheduler": lambda optimizer: None}, "scheduler 0 was saved, and is not given to load"),
    "another extra": ({"extra": {"ema": nn.Linear(1, 1)}}, r"extra\['counts'\] was saved, and is not given to load"),
    "what the plan remembers": (
        {"plan": tg.Plan(tg.Accumulate(2), clip=PLAN.clip)},
        "compress.codec.id was 'topk' and is None",
    ),
    "the plan": (
        {"plan": tg.Plan(tg.Accumulate(4), PLAN.compress, PLAN.clip)},
        "saved: accumulate.micro_batches was 2 and is 4. .*plan_may_differ=True",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_refused_on_every_rank(tmp_path, change):
    settings, words = CHANGES[change]
    on_ranks(2, lambda collective: saved(collective, tmp_path))
    for error in on_ranks(2, lambda collective: refused(collective, tmp_path, **settings)):
        assert isinstance(error, tg.StateMismatchError), error
        assert re.search(words, str(error)), error


class Picky:
    """Refuses on one rank what it has saved, in the middle of taking it up."""

    def __init__(self, rank=0):
        self.rank, self.value = rank, rank

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
        if self.rank == 1:
            raise ValueError("not this one")


@pytest.mark.parametrize("kind", ["an extra too many", "what an object refuses"])
def test_what_one_rank_refuses_no_rank_takes_up(tmp_path, kind):
    def extra(rank):
        counts = {"counts": {"epoch": rank}}
        if kind == "what an object refuses":
            return {**counts, "picky": Picky(rank)}
        return counts if rank == 0 else {**counts, "more": {}}

    if kind == "what an object refuses":
        on_ranks(2, lambda collective: saved(collective, tmp_path, extra=extra(collective.rank)))
    else:
        on_ranks(2, lambda collective: saved(collective, tmp_path))

    def body(collective):
        given = extra(collective.rank)
        error = refused(collective, tmp_path, extra=given)
        return error, given["counts"], getattr(given.get("picky"), "value", None)

    (first, *left), (second, *right) = on_ranks(2, body)
    assert re.search("rank 1 cannot (load|take up)", str(first)), first
    assert isinstance(second, tg.StateMismatchError)
    assert re.search(r"more'\] is given to load\(\), and was not saved|not this one", str(second)), second
    assert [left[0], right[0]] == [{"epoch": 0}, {"epoch": 1}]
    assert [left[1], right[1]] in ([None, None], [0, 1])


def test_another_plan_on_purpose(tmp_path):
    run = saved(tg.collectives.SingleCollective(), tmp_path)
    other = made(plan=tg.Plan(tg.Accumulate(4), PLAN.compress, tg.clip.GlobalNorm(2.0)))
    assert other.load(tmp_path, plan_may_differ=True) == 4
    assert not differences(run.state(), other.state())
    forgetful = made(plan=tg.Plan(tg.Accumulate(2)))
    with pytest.raises(tg.StateMismatchError, match="'residual' was saved, but this plan remembers nothing"):
        forgetful.load(tmp_path, plan_may_differ=True)


def test_what_cannot_be_saved_is_named(tmp_path):
    run = made()
    others = {
        r"extra\['epoch'\] is a int, which has no state_dict": {"extra": {"epoch": 3}},
        "extra is a list; give objects by name": {"extra": [nn.Linear(1, 1)]},
        "keep=0 must be at least 1": {"keep": 0},
    }
    for words, given in others.items():
        with pytest.raises(tg.ConfigError, match=words):
            tg.save(tmp_path, run.model, run.optimizers, run.pipe, **given)
    with pytest.raises(tg.ConfigError, match="model is not the one that pipe was attached to"):
        tg.save(tmp_path, Net(), run.optimizers, run.pipe)
    with pytest.raises(tg.ConfigError, match=r"pipe is a AdamW; pass what tg.attach\(model, optimizer, plan\) ret"):
        tg.save(tmp_path, run.model, run.pipe, run.optimizers[0])
    local = tg.attach_local(Net(), tg.DiLoCo(every=2))
    with pytest.raises(tg.UnsupportedError, match=r"outer.save\(\)"):
        tg.save(tmp_path, run.model, run.optimizers, local)
    assert not list(tmp_path.iterdir())


# Another number of ranks
def test_what_differs_by_rank_is_restored_by_rank(tmp_path):
    straight = on_ranks(2, lambda collective: saved(collective, tmp_path / "other", 8).state())

    def body(collective):
        saved(collective, tmp_path)
        run = made(collective)
        assert run.load(tmp_path) == 4
        run.train(batches(8, collective.rank)[4:])
        return run.state()

    resumed = on_ranks(2, body)
    assert straight[0]["/model/seen"] != straight[1]["/model/seen"]
    for one, other in zip(straight, resumed, strict=True):
        assert [key for key in differences(one, other) if "rng" not in key] == []


@pytest.mark.parametrize("ranks", [1, 3])
def test_another_number_of_ranks(tmp_path, ranks):
    """Residuals keep their sum, and running statistics are rank 0's."""
    first, second = on_ranks(2, lambda collective: saved(collective, tmp_path).state())

    def body(collective):
        run = made(collective)
        assert run.load(tmp_path) == 4
        return run.state()

    found = on_ranks(ranks, body)
    for key in first:
        if key.startswith(("/model", "/optimizer")):
            assert all(torch.equal(one[key], first[key]) if torch.is_tensor(first[key]) else True for one in found), key
        if "residual" in key:
            torch.testing.assert_close(sum(one[key] for one in found if key in one), first[key] + second[key])


@pytest.mark.parametrize("what", ["an extra", "a parameter", "the loader"])
def test_another_number_of_ranks_is_refused_where_ranks_differ(tmp_path, what):
    def given(collective):
        extra = {"counts": {"epoch": 0}, "rank": {"is": 0}}
        run = made(collective, extra=extra)
        if what == "an extra":
            extra["rank"]["is"] = collective.rank
        elif what == "a parameter":
            run.model.first.weight.data[collective.rank] += 1.0
        else:
            run.given["loader"] = Picky()
        return run

    on_ranks(2, lambda collective: given(collective).save(tmp_path))

    def load(collective):
        run = given(collective)
        return run.load(tmp_path)

    words = {
        "an extra": r"the state of extra\['rank'\] was another one on each of the 2 ranks",
        "a parameter": r"the state of model \(first.weight\) was another one",
        "the loader": "leave loader out of load",
    }
    for error in on_ranks(3, load):
        assert isinstance(error, tg.StateMismatchError), error
        assert re.search(words[what], str(error)), error
    assert on_ranks(2, load) == [0, 0]


# Folders
def test_a_folder_that_is_not_there(tmp_path):
    def body(collective):
        run = made(collective)
        assert run.load(tmp_path / "none", missing_ok=True) == 0
        return refused(collective, tmp_path / "none")

    for error in on_ranks(2, body):
        assert isinstance(error, tg.CheckpointError)
        assert re.search("no complete checkpoint in .*none.*missing_ok=True|rank 0 cannot load", str(error)), error


def test_what_pipe_save_wrote_has_no_model(tmp_path):
    made().pipe.save(tmp_path)
    error = refused(tg.collectives.SingleCollective(), tmp_path)
    assert "holds what pipe.save() writes, the pipeline alone" in str(error)


def test_the_last_ones_are_kept(tmp_path):
    """Also where a run began again at an earlier step. What a killed save left goes, what pipe.save wrote stays."""
    first = made()
    for number in range(1, 4):
        first.train(batches(2))
        first.save(tmp_path, keep=2)
        assert len(list(tmp_path.glob("step-*"))) == min(number, 2)
    again = made()
    again.pipe.save(tmp_path)
    (tmp_path / "step-00000009").mkdir()
    shutil.copytree(tmp_path / "step-00000003", tmp_path / "step-00000007")
    (tmp_path / "step-00000007/.metadata").unlink()
    again.train(batches(2))
    again.save(tmp_path, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000000", "step-00000001", "step-00000003"]
    assert made().load(tmp_path) == 2


FAULTS = {
    "a rank's file": (checkpoint, "write_file", lambda path, *_: "training-00001" in path.name),
    "the tensors": (dcp, "write_tensors", lambda tensors, folder, collective: collective.rank == 0),
    "latest": (checkpoint, "write_file", lambda path, *_: path.name == "latest"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_written_leaves_the_checkpoint_before(tmp_path, monkeypatch, fault):
    module, name, fails = FAULTS[fault]
    before = on_ranks(2, lambda collective: saved(collective, tmp_path).state())
    real = getattr(module, name)

    def call(*args):
        if fails(*args):
            raise OSError("No space left on device")
        return real(*args)

    monkeypatch.setattr(module, name, call)
    if module is dcp:
        monkeypatch.setattr("tightgrad.checkpoint.training_state.write_tensors", call)
    for error in on_ranks(2, lambda collective: saved(collective, tmp_path, 8)):
        assert isinstance(error, tg.CheckpointError), error
        assert "the previous checkpoint stays valid" in str(error)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000002"]

    def body(collective):
        run = made(collective)
        run.load(tmp_path)
        return run.state()

    assert [differences(one, other) for one, other in zip(before, on_ranks(2, body), strict=True)] == [[], []]


@pytest.mark.parametrize("place", ["a file in its place", "below a file"])
def test_a_folder_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if place == "a file in its place" else tmp_path / "file/below"
    for error in on_ranks(2, lambda collective: saved(collective, folder)):
        assert isinstance(error, tg.CheckpointError), error
        assert "rank 0 could not write" in str(error)


def damaged_files(folder):
    return sorted(path.name for path in next(folder.glob("step-*")).iterdir())


@pytest.mark.parametrize("damage", ["removed", "empty", "cut short", "a bit"])
@pytest.mark.parametrize("number", range(4))
def test_a_damaged_file_is_found(tmp_path, number, damage):
    saved(tg.collectives.SingleCollective(), tmp_path)
    names = damaged_files(tmp_path)
    assert names == [".metadata", "__0_0.distcp", "rank-00000-of-00001.safetensors", "training-00000-of-00001.pt"]
    path = tmp_path / "step-00000002" / names[number]
    content = path.read_bytes()
    places = range(len(content) // 9, len(content), len(content) // 9) if damage == "a bit" else [len(content) // 2]
    for place in places:
        if damage == "removed":
            path.unlink()
        else:
            flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
            path.write_bytes({"empty": b"", "cut short": content[:place], "a bit": flipped}[damage])
        error = refused(tg.collectives.SingleCollective(), tmp_path)
        if error == "loaded":  # a bit that nothing reads, such as padding between tensors
            assert names[number] in (".metadata", "__0_0.distcp")
            run = made()
            run.load(tmp_path)
            path.write_bytes(content)
            other = made()
            other.load(tmp_path)
            assert not differences(run.state(), other.state())
        else:
            assert isinstance(error, tg.CheckpointError), error
        path.write_bytes(content)


def test_files_of_two_saves(tmp_path):
    run = saved(tg.collectives.SingleCollective(), tmp_path)
    run.train(batches(2))
    run.save(tmp_path)
    for name in damaged_files(tmp_path):
        shutil.copytree(tmp_path, tmp_path.with_name("mixed"))
        shutil.copy(tmp_path / "step-00000002" / name, tmp_path.with_name("mixed") / "step-00000003" / name)
        error = refused(tg.collectives.SingleCollective(), tmp_path.with_name("mixed"))
        if name != ".metadata":  # the same tensors at the same places
            assert isinstance(error, tg.CheckpointError), (name, error)
        shutil.rmtree(tmp_path.with_name("mixed"))


def test_records_go_on(tmp_path):
    """The share of clipped steps, and the bytes that were sent, do not start anew, nor count a checkpoint's own."""

    def body(collective):
        mine = batches(8, collective.rank)
        records = made(collective).train(mine)
        stopped = made(collective)
        assert compared(stopped.train(mine, 4)) == compared(records[:2])
        stopped.save(tmp_path)
        run = made(collective)
        return compared(records[2:]) == compared(run.train(mine[run.load(tmp_path) :]))

    assert on_ranks(2, body) == [True, True]
