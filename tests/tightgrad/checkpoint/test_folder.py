"""Checkpoints on disk: what was saved, or an error on every rank, and nothing changed."""

import json
import struct

import pytest
import torch
from safetensors.torch import load as tensors_from
from safetensors.torch import save as to_bytes

import tightgrad as tg
from support.training import batches, linear, on_ranks, train
from tightgrad.checkpoint import rank_file

TOPK = tg.codecs.TopK(0.3)
PLAN = tg.Plan(tg.Accumulate(1), tg.Compress(TOPK, feedback=tg.ErrorFeedback()))


def make(collective=None, plan=PLAN):
    model = linear()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective)
    return model, pipe


def save_on(world_size, folder, plan=PLAN):
    def body(collective):
        model, pipe = make(collective, plan)
        train(pipe, model, batches(3, collective.rank))
        pipe.save(folder)
        return pipe.state_dict()["slots"]

    return on_ranks(world_size, body)


def load_on(world_size, folder, plan=PLAN):
    def body(collective):
        _, pipe = make(collective, plan)
        before = pipe.state.slots
        try:
            pipe.load(folder)
        except tg.TightGradError:
            assert pipe.state.slots is before
            raise
        return pipe.state_dict()["slots"]

    return on_ranks(world_size, body)


def edit(path, change):
    """Change metadata or tensors, and make the digest anew."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["tightgrad"])
    tensors = tensors_from(content)
    del about["digest"]
    change(about, tensors)
    about["digest"] = rank_file._digest(about, tensors)
    path.write_bytes(to_bytes(tensors, {"tightgrad": json.dumps(about)}))


def the_file(folder, rank=0, world_size=1):
    return folder / f"step-00000003/rank-{rank:05d}-of-{world_size:05d}.safetensors"


def refused(folder, words, plan=PLAN):
    _, pipe = make(plan=plan)
    with pytest.raises((tg.CheckpointError, tg.StateMismatchError), match=words):
        pipe.load(folder)


@pytest.mark.parametrize(
    "clip",
    [
        tg.clip.Chain((tg.clip.AdaGC(), tg.clip.ZClip())),
        tg.clip.ByName((("*/bias", tg.clip.AutoClip(history=3)),), default=tg.clip.AutoClip(history=4)),
    ],
    ids=repr,
)
def test_slots_of_combined_clippers_are_found_again(tmp_path, clip):
    """Their names hold slashes, at which keys were cut."""
    plan = tg.Plan(clip=clip)
    (saved,) = save_on(1, tmp_path, plan)
    assert any("/" in slot for slot in saved)
    (loaded,) = load_on(1, tmp_path, plan)
    assert loaded.keys() == saved.keys()
    for slot, values in saved.items():
        assert all(torch.equal(loaded[slot][name], value) or value.isnan().any() for name, value in values.items())


def test_a_step_saved_again_by_other_ranks_is_not_incomplete(tmp_path):
    """Resumed on another number of ranks and saved before the next step: each save has a folder of its own."""
    save_on(2, tmp_path)
    save_on(3, tmp_path)
    assert len(list((tmp_path / "step-00000003").iterdir())) == 2
    assert len(list((tmp_path / "step-00000003-2").iterdir())) == 3
    loaded = load_on(3, tmp_path)
    assert all(
        torch.equal(a["residual"]["weight"], b["residual"]["weight"])
        for a, b in zip(loaded, save_on(3, tmp_path), strict=True)
    )


def test_one_changed_number_in_the_metadata_is_found(tmp_path):
    save_on(1, tmp_path)
    path = the_file(tmp_path)
    content = path.read_bytes()
    assert content.count(b'consecutive_skips\\": 0') == 1
    path.write_bytes(content.replace(b'consecutive_skips\\": 0', b'consecutive_skips\\": 7'))
    refused(tmp_path, "damaged: its contents do not match their digest")


def test_files_of_two_ranks_swapped(tmp_path):
    save_on(2, tmp_path)
    first, second = the_file(tmp_path, 0, 2), the_file(tmp_path, 1, 2)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    for error in load_on(2, tmp_path):
        assert isinstance(error, tg.CheckpointError)
        assert "was written by rank" in str(error)


def test_files_of_two_steps_mixed(tmp_path):
    save_on(1, tmp_path)
    (tmp_path / "step-00000003").rename(tmp_path / "step-00000004")
    (tmp_path / "latest").write_text("step-00000004 1")
    refused(tmp_path, "from step 3; its files were mixed up")


@pytest.mark.parametrize("damage", ["missing", "cut short", "does not fit"])
def test_what_one_rank_cannot_load_no_rank_loads(tmp_path, damage):
    """The others would wait for it in the first window, until the collective times out."""
    save_on(2, tmp_path)
    path = the_file(tmp_path, 1, 2)
    if damage == "missing":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        edit(path, lambda about, tensors: tensors.update({"slots/0/weight": torch.zeros(7)}))
    first, second = load_on(2, tmp_path)
    assert isinstance(first, tg.CheckpointError)
    assert "rank 1 cannot load" in str(first)
    assert isinstance(second, tg.StateMismatchError if damage == "does not fit" else tg.CheckpointError)


@pytest.mark.parametrize(
    "text", [b"", b"step-00000003", b"../x 1", b"/etc 1", b"step-00000003 0", b"\xff\xfe", b"\0", b"x" * 10**6], ids=str
)
def test_latest_names_a_checkpoint_or_nothing(tmp_path, text):
    save_on(1, tmp_path)
    (tmp_path / "latest").write_bytes(text)
    refused(tmp_path, "not a checkpoint and its number of ranks")


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_json_too_deep_to_read(tmp_path, depth):
    save_on(1, tmp_path)
    path = the_file(tmp_path)
    path.write_bytes(to_bytes(tensors_from(path.read_bytes()), {"tightgrad": "[" * depth + "]" * depth}))
    refused(tmp_path, "cannot be read")


EDITS = {
    "no object": (lambda a, t: a.update(slots=None), "cannot be read"),
    "a negative count": (lambda a, t: a.update(num_consumed=-1), "num_consumed of a pipeline state is -1"),
    "a number that is none": (lambda a, t: a.update(consecutive_skips="x"), "consecutive_skips .* is 'x'"),
    "a window that is none": (lambda a, t: a.update(open_window={"position": 3}), "the open window of"),
    "another dtype": (lambda a, t: t.update({"slots/0/weight": t["slots/0/weight"].half()}), "dtype torch.float16"),
    "NaN": (lambda a, t: t["slots/0/weight"].fill_(torch.nan), "holds inf or NaN, which would never leave it"),
    "a tensor of the model": (lambda a, t: t.update({"slots/0/*": torch.zeros(3)}), r"residual of '\*' was saved"),
    "a tensor of nothing": (lambda a, t: t.update({"elsewhere": torch.zeros(3)}), "cannot be read"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_is_refused(tmp_path, name):
    change, words = EDITS[name]
    save_on(1, tmp_path)
    edit(the_file(tmp_path), change)
    refused(tmp_path, words)


def test_a_longer_history_does_not_take_a_shorter_one(tmp_path):
    """It was an error of torch.where in the middle of the next step."""
    save_on(1, tmp_path, tg.Plan(clip=tg.clip.AutoClip(history=4)))
    refused(tmp_path, r"autoclip_norms .* has shape \(4,\)", tg.Plan(clip=tg.clip.AutoClip(history=9)))


@pytest.mark.parametrize("scale", [0.0, -1.0, torch.nan, torch.inf])
def test_a_loss_scale_that_cannot_be(tmp_path, scale):
    plan = tg.Plan(loss_scale=tg.LossScale())
    save_on(1, tmp_path, plan)
    edit(the_file(tmp_path), lambda about, tensors: tensors["slots/0/*"].fill_(scale))
    model, pipe = make(plan=plan)
    pipe.load(tmp_path)
    with pytest.raises(tg.StateMismatchError, match="loss scale in the state"):
        train(pipe, model, batches(1))


def test_residuals_of_powersgd_are_delivered_on_one_rank(tmp_path):
    """One rank reduced nothing at all, and kept what it had been handed for good."""
    plan = tg.Plan(compress=tg.Compress(None, tg.reducers.PowerSGD(1, 1.0), tg.ErrorFeedback()))

    def make_larger(collective=None):
        model = torch.nn.Linear(8, 6)
        return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective)

    def step(model, pipe, seed):
        for window in pipe.windows([torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))]):
            for batch in window:
                pipe.backward(model(batch).square().mean())
            pipe.step()

    def save(collective):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, pipe = make_larger(collective)
        step(model, pipe, collective.rank)
        pipe.save(tmp_path)
        return pipe.state_dict()["slots"]["residual"]["weight"]

    handed = sum(tg.collectives.run_threaded(2, save))
    model, pipe = make_larger()
    pipe.load(tmp_path)
    assert torch.equal(pipe.state.slots["residual"]["weight"], handed)
    step(model, pipe, 5)
    assert handed.any()
    assert not torch.equal(pipe.state.slots["residual"]["weight"], handed)
