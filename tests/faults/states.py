"""Damaged checkpoints: files that were changed, cut, swapped or lost, and files that somebody edited on purpose.

A file that was damaged must be refused, or give the very state that was saved. One that was edited, its digest made
anew, must be refused or give a state with which the next step works or is refused.
"""

import json
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_from
from safetensors.torch import save as to_bytes

import tightgrad as tg
from faults.mutations import damaged_bytes
from tightgrad.checkpoint import rank_file
from tightgrad.checkpoint.folder import load_state
from tightgrad.checkpoint.save_folder import newest
from tightgrad.checkpoint.state import PipelineState
from tightgrad.collectives import SingleCollective, run_threaded
from tightgrad.core.errors import TightGradError

Files = dict[str, bytes]
TOPK = tg.codecs.TopK(0.2)
PLANS = {
    "feedback": tg.Plan(compress=tg.Compress(TOPK, feedback=tg.ErrorFeedback())),
    "eight bits": tg.Plan(compress=tg.Compress(TOPK, feedback=tg.ErrorFeedback("int8"))),
    "window": tg.Plan(tg.Accumulate(2), tg.Compress(TOPK, feedback=tg.feedback.MomentumCorrection())),
    "low rank": tg.Plan(compress=tg.Compress(None, tg.reducers.PowerSGD(1, 1.0), tg.ErrorFeedback())),
    "numbers": tg.Plan(tg.Accumulate(1), clip=tg.clip.AutoClip(history=4), loss_scale=tg.LossScale()),
    "by tensor": tg.Plan(tg.Accumulate(1), clip=tg.clip.Chain((tg.clip.AdaGC(warmup_steps=1), tg.clip.ZClip()))),
    "estimates": tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(4), feedback=tg.feedback.EF21())),
}
BATCHES = [torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: -1,
    lambda: 0,
    lambda: 10**30,
    lambda: 1e308,
    lambda: float("nan"),
    lambda: True,
    lambda: "x",
    lambda: "../../latest",
    list,
    dict,
    lambda: [1, "a", None],
    lambda: {"loss": "x"},
    lambda: [{"loss": float("inf")}],
)


def _model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 5)).to(dtype)


def _pipe(kind: str, collective: Any = None) -> tuple[torch.nn.Module, tg.GradientPipeline]:
    model = _model(torch.bfloat16 if kind == "window" else torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, tg.attach(model, optimizer, PLANS[kind], collective=collective)


def _train(model: torch.nn.Module, pipe: tg.GradientPipeline, stop_in_window: bool = False) -> None:
    for window in pipe.windows(BATCHES):
        for batch in window:
            pipe.backward(model(batch.to(next(model.parameters()).dtype)).square().mean())
            if stop_in_window and pipe.state.step:
                return
        pipe.step()


def _saved(kind: str, world_size: int) -> Files:
    with tempfile.TemporaryDirectory() as folder:

        def body(collective: Any) -> None:
            model, pipe = _pipe(kind, collective)
            _train(model, pipe, stop_in_window=kind == "window")
            pipe.save(folder)

        run_threaded(world_size, body) if world_size > 1 else body(SingleCollective())
        root = Path(folder)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class _Case:
    """One good checkpoint, the pipeline that loads it, and what it then holds."""

    def __init__(self, kind: str, world_size: int) -> None:
        self.kind, self.world_size = kind, world_size
        self.files = _saved(kind, world_size)
        self.model, self.pipe = _pipe(kind)
        self.fresh = self.pipe.state_dict()
        self.scratch = tempfile.TemporaryDirectory()  # lives as long as this object
        self.folder = Path(self.scratch.name) / "checkpoints"
        self.folder.mkdir()
        self.expected = _plain(self.loaded(self.files))

    def loaded(self, files: Files) -> dict[str, Any]:
        """What the pipeline holds after it has loaded; another number of ranks for those of several."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.pipe.load_state_dict(self.fresh)
        before = self.pipe.state.slots
        if self.world_size > 1:  # as rank 1 of as many ranks reads it
            own = load_state(self.folder, newest(self.folder), self.pipe.plan.slots, 1, self.world_size)
            PipelineState().load_state_dict(own, self.pipe.adapter.parameters, self.pipe.plan.slots)
        try:
            self.pipe.load(self.folder)
        except TightGradError:
            assert self.pipe.state.slots is before, "refused, but not left alone"
            raise
        return self.pipe.state_dict()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), bytes(value.contiguous().view(-1).view(torch.uint8).numpy()))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _rank_files(files: Files) -> list[str]:
    return sorted(name for name in files if name.endswith(".safetensors"))


# Damage: nobody meant it
def _damaged_file(files: Files, draw: random.Random) -> str:
    name = draw.choice([*files, *_rank_files(files) * 2])
    kind, files[name] = damaged_bytes(files[name], draw)
    return f"{kind} in {name}"


def _damaged_header(files: Files, draw: random.Random) -> str:
    name = draw.choice(_rank_files(files))
    size = 8 + struct.unpack("<Q", files[name][:8])[0]
    kind, header = damaged_bytes(files[name][:size], draw)
    files[name] = header + files[name][size:]
    return f"{kind} in the header"


def _declared_size(files: Files, draw: random.Random) -> str:
    name = draw.choice(_rank_files(files))
    size = draw.choice((0, 1, 7, 2**31, 10**8, 10**9, 2**63, 2**64 - 1, draw.randrange(5_000)))
    files[name] = struct.pack("<Q", size) + files[name][8:]
    return f"a header of {size} bytes"


def _header_json(files: Files, draw: random.Random) -> str:
    """The declared dtypes, shapes and offsets of the tensors."""
    name = draw.choice(_rank_files(files))
    size = struct.unpack("<Q", files[name][:8])[0]
    header, body = json.loads(files[name][8 : 8 + size]), files[name][8 + size :]
    key = draw.choice([key for key in header if key != "__metadata__"] or ["__metadata__"])
    choice = draw.randrange(7)
    if choice == 0:
        header[key] = draw.choice(VALUES)()
    elif choice == 1 and key != "__metadata__":
        header[key]["dtype"] = draw.choice(("F64", "U8", "BOOL", "F8_E4M3", "nonsense", 3))
    elif choice == 2 and key != "__metadata__":
        header[key]["shape"] = draw.choice(([], [-1], [2**62, 2**62], [1] * 5_000, [10**12], "x", [0]))
    elif choice == 3 and key != "__metadata__":
        header[key]["data_offsets"] = draw.choice(([0, 10**15], [5, 3], [-1, 4], [2**63, 2**64], [0, 0], []))
    elif choice == 4:
        del header[key]
    elif choice == 5:
        header["slots/0/another"] = header[key]
    else:
        header["deep"] = json.loads("[" * 100 + "]" * 100)
    text = json.dumps(header).encode()
    files[name] = struct.pack("<Q", len(text)) + text + body
    return f"choice {choice} in the header of {key}"


def _deep_json(files: Files, draw: random.Random) -> str:
    name = draw.choice(_rank_files(files))
    depth = draw.choice((10, 1_000, 100_000))
    text = draw.choice(("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth))
    metadata = json.dumps({"__metadata__": {"tightgrad": text}}).encode() if draw.random() < 0.5 else text.encode()
    files[name] = struct.pack("<Q", len(metadata)) + metadata
    return f"{depth} brackets"


def _lost_or_found(files: Files, draw: random.Random) -> str:
    names = _rank_files(files)
    choice = draw.randrange(6)
    if choice == 0:
        del files[draw.choice(list(files))]
    elif choice == 1:
        files[names[0].replace("of-0000", "of-0009")] = files[names[0]]
    elif choice == 2:
        files[f"{names[0]}.{draw.choice(('tmp', 'old', 'safetensors'))}"] = b"left over"
    elif choice == 3:
        first, second = draw.choice(names), draw.choice(names)
        files[first], files[second] = files[second], files[first]
    elif choice == 4:
        files["latest"] = draw.choice(
            [
                *(
                    b"step-00000099 1",
                    b"../step-00000003 1",
                    b"/etc/passwd 1",
                    b"\0",
                    b"\xff" * 10**6,
                    b"step-00000003 ",
                ),
                *(f"step-00000003 {size}".encode() for size in (0, 2, 3, 999_999_999, 10**18)),
            ]
        )
    else:
        for name in names:
            files[name.replace("step-0000000", "step-0000001")] = files.pop(name)
        files["latest"] = files["latest"].replace(b"step-0000000", b"step-0000001")
    return f"lost and found, choice {choice}"


DAMAGES = (_damaged_file, _damaged_header, _declared_size, _header_json, _deep_json, _lost_or_found)


# Edited: a good digest, whatever the rest
def _edited(files: Files, draw: random.Random) -> str:
    name = draw.choice(_rank_files(files))
    size = struct.unpack("<Q", files[name][:8])[0]
    about = json.loads(json.loads(files[name][8 : 8 + size])["__metadata__"]["tightgrad"])
    tensors = tensors_from(files[name])
    del about["digest"]
    where = about["open_window"] if about["open_window"] and draw.random() < 0.5 else about
    described = _edited_tensor(tensors, draw) if draw.random() < 0.5 else _edited_number(where, draw)
    about["digest"] = rank_file._digest(about, tensors)
    files[name] = to_bytes(tensors, {"tightgrad": json.dumps(about)})
    return described


def _edited_number(about: dict[str, Any], draw: random.Random) -> str:
    key = draw.choice(list(about))
    if draw.random() < 0.2:
        del about[key]
        return f"without {key}"
    about[key] = draw.choice(VALUES)()
    return f"{key}={about[key]!r}"


def _edited_tensor(tensors: dict[str, torch.Tensor], draw: random.Random) -> str:
    key = draw.choice(list(tensors))
    tensor = tensors[key].clone()
    choice = draw.randrange(7)
    if choice == 0:
        tensors[key] = tensor.to(draw.choice((torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16)))
    elif choice == 1:
        tensors[key] = draw.choice(
            (tensor[None], tensor.view(-1)[:1], torch.zeros(2, 2), torch.zeros(()), tensor.view(-1))
        )
    elif choice == 2 and tensor.is_floating_point():
        tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice((torch.nan, torch.inf, -torch.inf))
        tensors[key] = tensor
    elif choice == 3:
        del tensors[key]
    elif choice == 4:
        tensors[
            draw.choice(
                ("x", "slots/0", "slots/x/y", "slots/9/y", "slots/0/y", "grads/x", "sums", "slots/0/*", "slots/-1/*")
            )
        ] = tensor
    elif choice == 5:
        other = draw.choice(list(tensors))
        tensors[key], tensors[other] = tensors[other].clone(), tensor
    else:
        flat = tensor.view(-1).view(torch.uint8).clone()
        flat[draw.randrange(flat.numel())] = draw.randrange(256)
        tensors[key] = flat.view(tensor.dtype).view(tensor.shape)
    return f"choice {choice} of {key}"


def attempts(seed: int) -> Iterator[Callable[[], str]]:
    draw = random.Random(seed)
    cases = [_Case(kind, 1) for kind in PLANS] + [_Case(kind, 2) for kind in ("feedback", "eight bits", "low rank")]
    while True:
        damage = draw.choice((*DAMAGES, _edited, _edited))
        yield partial(_attempt, draw.choice(cases), damage, random.Random(draw.getrandbits(64)))


def _attempt(case: _Case, damage: Callable[[Files, random.Random], str], draw: random.Random) -> str:
    files = dict(case.files)
    described = damage(files, draw)
    kind = "edited" if damage is _edited else "damaged"
    try:
        state = case.loaded(files)
        if damage is not _edited:
            assert _plain(state) == case.expected, "a damaged file gave another state, and no error"
            return "states damaged: the state that was saved"
        _train(case.model, case.pipe)
    except TightGradError as error:
        return f"states {kind}: {type(error).__name__}"
    except BaseException as error:
        error.add_note(f"{case.kind} of {case.world_size} rank(s): {described}")
        raise
    finally:
        case.pipe.abandon()
    return "states edited: loaded, and trained on"
