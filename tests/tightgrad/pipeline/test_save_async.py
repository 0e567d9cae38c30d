"""A save that is written while training goes on is the one of the moment at which it was called."""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tightgrad as tg
from support.ranks import run_ranks
from support.resuming import Run, compared, differences
from support.wrapping import ragged_batches, small_model, wrap
from tightgrad.pipeline import prepared

BATCHES = [torch.randn(4, 6, generator=torch.Generator().manual_seed(number)) for number in range(12)]
PLAN = tg.Plan(tg.Accumulate(2), tg.Compress(tg.codecs.TopK(0.2), feedback=tg.ErrorFeedback()), tg.clip.GlobalNorm(0.5))


def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2))
    model[1].eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    average, progress = AveragedModel(model), {"steps": []}
    pipe = tg.attach(model, optimizer, PLAN, scheduler=schedule)
    given = {"extra": {"average": average, "progress": progress}}

    def after_step(record):
        average.update_parameters(model)
        progress["steps"].append(record.step)

    return Run(model, [optimizer], pipe, lambda model, batch: model(batch).square().mean(), given, after_step)


def save_async(run, folder, **more):
    return tg.save_async(folder, run.model, run.optimizers, run.pipe, **run.given, **more)


@pytest.fixture
def held_back(monkeypatch):
    """Writing begins when the event is set."""
    begin, save_state = threading.Event(), prepared.save_state

    def later(*args):
        if threading.current_thread() is not threading.main_thread():
            assert begin.wait(60)
        return save_state(*args)

    monkeypatch.setattr(prepared, "save_state", later)
    yield begin
    begin.set()


@pytest.mark.parametrize("stop", [0, 4, 5], ids=["before the first step", "after a step", "in a window"])
def test_what_is_written_later_is_the_state_of_the_call(tmp_path, held_back, stop):
    straight, stopped, resumed = made(), made(), made()
    torch.manual_seed(7)
    expected = straight.train(BATCHES)
    torch.manual_seed(7)
    stopped.train(BATCHES, stop)
    saved = save_async(stopped, tmp_path)
    assert not saved.done()
    rest = BATCHES[stop:] if stop % 2 == 0 else BATCHES
    if stop % 2:
        stopped.pipe.abandon()
    stopped.train(rest)
    with torch.no_grad():
        stopped.model[0].weight.zero_()
    held_back.set()
    assert saved.result().name == f"step-{stop // 2:08d}"
    first = resumed.load(tmp_path)
    assert first == stop // 2 * 2
    later = resumed.train(BATCHES[first:])
    assert differences(straight.state(), resumed.state()) == []
    assert compared(expected)[-len(later) :] == compared(later)
    assert resumed.given["extra"]["progress"]["steps"] == [0, 1, 2, 3, 4, 5]


def test_training_is_the_same_with_saves_under_way(tmp_path):
    straight, saving = made(), made()
    after_step = saving.after_step
    saving.after_step = lambda record: (after_step(record), save_async(saving, tmp_path, keep=2))
    torch.manual_seed(7)
    expected = straight.train(BATCHES)
    torch.manual_seed(7)
    assert compared(saving.train(BATCHES)) == compared(expected)
    saving.pipe.wait_for_save()
    assert differences(straight.state(), saving.state()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000005", "step-00000006"]


@pytest.mark.parametrize("next_call", ["result", "save", "save_async", "load", "pipe.save"])
def test_what_went_wrong_is_raised_by_the_next_call_and_once(tmp_path, monkeypatch, next_call):
    run = made()
    run.train(BATCHES, 2)
    run.save(tmp_path)
    run.train(BATCHES, 2)

    def full(*args):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("tightgrad.checkpoint.training_state.write_tensors", full)
        saved = save_async(run, tmp_path)
        saved.exception()
    calls = {
        "result": saved.result,
        "save": lambda: run.save(tmp_path),
        "save_async": lambda: save_async(run, tmp_path),
        "load": lambda: run.load(tmp_path),
        "pipe.save": lambda: run.pipe.save(tmp_path / "own"),
    }
    with pytest.raises(tg.CheckpointError, match=r"previous checkpoint stays valid.*disk is full"):
        calls[next_call]()
    if next_call == "result":
        with pytest.raises(tg.CheckpointError):
            run.pipe.wait_for_save()
    assert (tmp_path / "latest").read_text().startswith("step-00000001")
    assert save_async(run, tmp_path).result().name == "step-00000002"


def test_the_next_save_waits(tmp_path, held_back):
    run = made()
    run.train(BATCHES, 2)
    first = save_async(run, tmp_path)
    threading.Timer(0.2, held_back.set).start()
    run.train(BATCHES, 2)
    second = save_async(run, tmp_path)
    assert first.done()
    assert second.result().name == "step-00000002"


def test_a_pipeline_ends_with_its_last_reference(tmp_path, held_back):
    run = made()
    saved = save_async(run, tmp_path)
    gone = []
    weakref.finalize(run.pipe, gone.append, True)
    del run
    gc.collect()
    assert gone
    held_back.set()
    assert saved.result().exists()


def test_ranks_without_a_process_group(tmp_path):
    def body(collective):
        torch.manual_seed(0)
        model = nn.Linear(6, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pipe = tg.attach(model, optimizer, tg.Plan(clip=tg.clip.GlobalNorm(1.0)), collective=collective)
        with pytest.raises(tg.UnsupportedError, match=r"ThreadedCollective; call tg\.save"):
            tg.save_async(tmp_path, model, optimizer, pipe)

    tg.collectives.run_threaded(2, body)


def on_rank(folder, wrapper, fails):
    def fresh():
        model = wrap(small_model(), wrapper)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        plan = tg.Plan(tg.Accumulate(3), clip=tg.clip.GlobalNorm(0.3))
        loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
        return Run(model, [optimizer], tg.attach(model, optimizer, plan), loss)

    rank = torch.distributed.get_rank()
    batches = ragged_batches(rank)
    straight, stopped, resumed = fresh(), fresh(), fresh()
    straight.train(batches)
    stopped.train(batches, 3)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1 and fails:
            patch.setattr("tightgrad.checkpoint.folder.serialized", lambda *args: 1 / 0)
        saved = save_async(stopped, folder)
        stopped.train(batches[3:])  # its collectives go beside those of the save
        if fails:
            with pytest.raises(tg.CheckpointError, match="rank 1 could not write"):
                saved.result()
            with pytest.raises(tg.CheckpointError, match="rank 1 could not write"):
                stopped.save(folder)
            return
    saved.result()
    first = resumed.load(folder)
    resumed.train(batches[first:])
    assert differences(straight.state(), stopped.state()) == []
    assert differences(straight.state(), resumed.state()) == []


@pytest.mark.parametrize("fails", [False, True], ids=["whole", "one rank fails"])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_ranks_train_on_while_they_write(tmp_path, wrapper, fails):
    run_ranks(2, on_rank, str(tmp_path), wrapper, fails)
