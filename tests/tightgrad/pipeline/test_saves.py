"""Each save is a folder of its own, and the files of two saves are never loaded together."""

import os
import shutil
import warnings

import pytest
import torch
import torch.distributed.checkpoint as torch_dcp

import tightgrad as tg
from support.in_turn import in_turn
from support.saved import contents, load, make, windows
from support.training import batches, linear, loss_of, on_ranks
from tightgrad.checkpoint import folder as checkpoint
from tightgrad.checkpoint import rank_file, save_folder

STEP = 1


def advance(pipe, model, loader, places):
    """Go on until all `places` were met."""
    walk = windows(pipe, model, loader)
    for place in places:
        while next(walk) != place:
            pass
    return walk


def save_twice(collective, kind, folder):
    """Two saves at the same step, in between which something happened; the paths of both."""
    model, pipe = make(collective)
    loader = batches(4, collective.rank)
    loader += [batch * torch.inf for batch in batches(2, collective.rank)]
    loader += batches(4, 10 + collective.rank)
    walk = advance(pipe, model, loader, ["step"])
    assert pipe.state.step == STEP
    if kind == "nothing happened":
        first = pipe.save(folder)
    elif kind == "a skipped step":
        next(walk), next(walk), next(walk)
        pipe, model = again(collective, pipe)
        walk = windows(pipe, model, loader[4:])
        first = pipe.save(folder)
        assert [next(walk) for _ in range(3)][-1] == "step"
    elif kind == "two places of a window":
        next(walk)
        first = pipe.save(folder)
        next(walk)
    elif kind == "a window abandoned":
        next(walk)
        first = pipe.save(folder)
        pipe.abandon()
    else:  # the same step once more, by a run that was started again
        first = pipe.save(folder)
        model, pipe = make(collective)
        advance(pipe, model, batches(4, 20 + collective.rank), ["step"])
    step = pipe.state.step
    second = pipe.save(folder)
    assert pipe.state.step == step
    return first, second, pipe.state_dict()


def again(collective, pipe):
    """Another pipeline in the same state."""
    model, other = make(collective)
    other.load_state_dict(pipe.state_dict())
    return other, model


KINDS = [
    "nothing happened",
    "a skipped step",
    "two places of a window",
    "a window abandoned",
    "a run started again",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_leaves_the_files_of_the_one_before_alone(tmp_path, kind):
    kept = {}

    def body(collective):
        first, second, state = save_twice(collective, kind, tmp_path)
        kept[collective.rank] = contents(first)
        return first, second, state

    (first, second, state), other = on_ranks(2, body)
    assert (first, second) == other[:2]
    assert first != second
    assert kept[0] == kept[1] == contents(first)
    assert (tmp_path / "latest").read_text() == f"{second.name} 2"
    loaded = on_ranks(2, lambda collective: load(collective, tmp_path))
    for (_, step, residual, _), saved in zip(loaded, (state, other[2]), strict=True):
        assert step == saved["step"]
        assert all(torch.equal(residual[name], value) for name, value in saved["slots"]["residual"].items())


@pytest.mark.parametrize(("kind", "exchanged", "loading_ranks"), in_turn(KINDS, [0, 1], [2, 1, 3]))
def test_files_of_two_saves_are_not_loaded_together(tmp_path, kind, exchanged, loading_ranks):
    """As an earlier version left them when it was killed between two ranks' files."""
    (first, second, _), _ = on_ranks(2, lambda collective: save_twice(collective, kind, tmp_path))
    name = f"rank-0000{exchanged}-of-00002.safetensors"
    shutil.copy(first / name, second / name)
    for error in on_ranks(loading_ranks, lambda collective: load(collective, tmp_path)):
        assert isinstance(error, tg.CheckpointError), error
        same_step = first.name.split("-")[1] == second.name.split("-")[1]
        assert ("of different saves" if same_step else "mixed up") in str(error) or "cannot load" in str(error)


@pytest.mark.parametrize("skips", [float("nan"), None, "x", -1, 10**30, True])
def test_counters_that_are_none_are_refused_by_other_ranks_too(tmp_path, skips):
    (_, other), _ = on_ranks(2, lambda collective: save_twice(collective, "nothing happened", tmp_path)[:2])
    file = other / "rank-00001-of-00002.safetensors"
    state = rank_file.deserialized(file, 1, 2)
    save_id = state.pop("save")
    file.write_bytes(rank_file.serialized({**state, "consecutive_skips": skips}, 1, 2, save_id))
    for error in on_ranks(3, lambda collective: load(collective, tmp_path)):
        assert isinstance(error, tg.CheckpointError | tg.StateMismatchError), error


def failing(monkeypatch, name, fails, error):
    """Let a function of `checkpoint` raise where `fails` of its arguments."""
    real = getattr(checkpoint, name)

    def call(*args):
        if fails(*args):
            raise error
        return real(*args)

    monkeypatch.setattr(checkpoint, name, call)


FAULTS = {
    "a file": ("write_file", lambda path, _: "rank-00001" in path.name, OSError("full")),
    "latest": ("write_file", lambda path, _: path.name == "latest", OSError("full")),
    "the folder": ("make_folder", lambda *_: True, PermissionError("read-only")),
    "memory": ("serialized", lambda state, rank, *_: rank == 1, MemoryError()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_one_rank_cannot_write_leaves_nothing_behind(tmp_path, monkeypatch, fault):
    name, fails, error = FAULTS[fault]

    def body(collective):
        model, pipe = make(collective)
        pipe.save(tmp_path)
        advance(pipe, model, batches(2, collective.rank), ["step"])
        with monkeypatch.context() as patch:
            if collective.rank == 0:
                failing(patch, name, fails, error)
            collective.all_gather(torch.zeros(1))
            with pytest.raises(tg.CheckpointError, match="the previous checkpoint stays valid"):
                pipe.save(tmp_path)
            collective.all_gather(torch.zeros(1))
        return sorted(os.listdir(tmp_path))

    assert on_ranks(2, body) == [["latest", "step-00000000"]] * 2
    assert [step for _, step, _, _ in on_ranks(2, lambda collective: load(collective, tmp_path))] == [0, 0]


def test_one_rank_has_no_state(tmp_path):
    def body(collective):
        _, pipe = make(collective)
        if collective.rank == 1:
            pipe.state_dict = lambda: 1 / 0
        pipe.save(tmp_path)

    first, second = on_ranks(2, body)
    assert isinstance(first, tg.CheckpointError)
    assert "rank 1 could not write" in str(first)
    assert isinstance(second, ZeroDivisionError)
    assert not list(tmp_path.iterdir())


def test_ranks_at_different_steps_have_no_checkpoint(tmp_path):
    def body(collective):
        _, pipe = make(collective)
        pipe.state.step = collective.rank
        pipe.save(tmp_path)

    for error in on_ranks(2, body):
        assert isinstance(error, tg.CheckpointError)
        assert "the ranks are at different steps (0, 1)" in str(error)


def test_folders_that_the_ranks_do_not_share_are_found_when_saving(tmp_path):
    """What was saved could not have been loaded: `latest` is where rank 0 wrote it."""

    def body(collective):
        _, pipe = make(collective)
        own = tmp_path / f"disk of rank {collective.rank}"
        if collective.rank < 2:
            own.mkdir()
        pipe.save(own)

    for rank, error in enumerate(on_ranks(3, body)):
        assert isinstance(error, tg.CheckpointError)
        assert "rank 1, 2 could not write" in str(error)
        assert ("on a disk that all ranks share" in str(error)) == (rank > 0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_all_ranks_load_what_rank_0_reads(tmp_path):
    """On a network disk, a rank may see the `latest` of a while ago."""
    on_ranks(2, lambda collective: save_twice(collective, "a run started again", tmp_path / "new"))
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    (tmp_path / "old/latest").write_text("step-00000001 2")
    names = ("new", "old")
    loaded = on_ranks(2, lambda collective: load(collective, tmp_path / names[collective.rank]))
    expected = on_ranks(2, lambda collective: load(collective, tmp_path / "new"))
    for one, other in zip(loaded, expected, strict=True):
        assert all(torch.equal(one[2][name], value) for name, value in other[2].items())


def test_a_folder_that_the_listing_does_not_show_yet_is_not_taken(tmp_path, monkeypatch):
    made = [save_folder.make_folder(tmp_path, 7) for _ in range(3)]
    monkeypatch.setattr(save_folder.os, "listdir", lambda folder: [])
    made.append(save_folder.make_folder(tmp_path, 7))
    assert made == [1, 2, 3, 4]
    assert (tmp_path / "step-00000007-4").is_dir()


def test_two_runs_save_to_one_folder(tmp_path):
    """At the same steps and at the same time, while others load."""
    saves = 10

    def run(collective):
        number, inner = collective.rank // 2, collective.split([(0, 1), (2, 3), (4, 5)])
        _, pipe = make(inner)
        found = []
        for turn in range(saves):
            if number == 2:
                found.append(load_marker(inner, pipe, tmp_path))
            else:
                pipe.state.slots = {"residual": {"bias": torch.full((2,), 100.0 * number + turn)}}
                pipe.save(tmp_path)
        return found

    on_ranks(2, lambda collective: make(collective)[1].save(tmp_path))
    ranks = on_ranks(6, run)
    assert ranks[4] == ranks[5]
    assert len(ranks[4]) == saves
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 1 + 2 * saves


def load_marker(collective, pipe, folder):
    pipe.load(folder)
    residual = pipe.state.slots.get("residual", {})
    return residual["bias"].tolist() if residual else []


def test_parts_of_two_saves_in_one_dcp_checkpoint_are_refused(tmp_path):
    def body(collective):
        _, pipe = make(collective)
        return [tg.dcp.state_dict(pipe) for _ in range(2)]

    (first, second), (other_first, other_second) = on_ranks(2, body)

    def loaded(parts, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one process does all, and threads share these filters
            torch_dcp.save(parts, checkpoint_id=tmp_path / name, no_dist=True)
            return on_ranks(2, lambda collective: tg.dcp.load(make(collective)[1], tmp_path / name))

    assert loaded({**first, **other_first}, "whole") == [0, 0]
    assert loaded({**second, **other_second}, "whole too") == [0, 0]
    for error in loaded({**first, **other_second}, "mixed"):
        assert isinstance(error, tg.CheckpointError)
        assert "of different saves" in str(error)


def test_local_updates_save_twice_in_a_round(tmp_path):
    def body(collective):
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        outer = tg.attach_local(model, tg.DiLoCo(every=5), collective=collective)
        paths = []
        for batch in batches(2, collective.rank):
            loss_of(model, batch).backward()
            optimizer.step()
            outer.step()
            paths.append(outer.save(tmp_path))
        shutil.copy(paths[0] / f"rank-0000{collective.rank}-of-00002.safetensors", tmp_path / f"{collective.rank}")
        return paths, outer.load(tmp_path)

    (paths, consumed), _ = on_ranks(2, body)
    assert [path.name for path in paths] == ["step-00000000", "step-00000000-2"]
    assert consumed == 2
    shutil.copy(tmp_path / "1", paths[1] / "rank-00001-of-00002.safetensors")

    def load_outer(collective):
        return tg.attach_local(linear(), tg.DiLoCo(every=5), collective=collective).load(tmp_path)

    for error in on_ranks(2, load_outer):
        assert isinstance(error, tg.CheckpointError)
        assert "of different saves" in str(error)
