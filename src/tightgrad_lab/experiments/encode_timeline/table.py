"""The table of frameworks: each cell is run here, or quoted with its source."""

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from tightgrad_lab.experiments.encode_timeline import peers as peers
from tightgrad_lab.experiments.experiment import Report
from tightgrad_lab.experiments.fragile import HANGS, outcomes
from tightgrad_lab.schema.compression import EncodeTimelineRow, PeerCell

RANKS = 2
AT_ONCE = 2
Aspect = Literal["ddp", "fsdp2", "feedback", "resume", "cpu"]
COLUMNS: tuple[Aspect, ...] = ("ddp", "fsdp2", "feedback", "resume", "cpu")
RUN, QUOTED = "run", "quoted"
_TORCH = "https://docs.pytorch.org/docs/stable/ddp_comm_hooks.html"
_QUANTIZATION = (
    "https://github.com/pytorch/pytorch/blob/main/torch/distributed/algorithms/ddp_comm_hooks/quantization_hooks.py"
)
_ACCELERATE = "https://huggingface.co/docs/accelerate/usage_guides/ddp_comm_hook"
_TORCHFT = "https://github.com/meta-pytorch/torchft/blob/main/torchft/collectives.py"
_HIVEMIND = "https://github.com/learning-at-home/hivemind/blob/master/hivemind/optim/power_sgd_averager.py"
_DEEPSPEED = "https://www.deepspeed.ai/tutorials/onebit-adam/"
_HOROVOD = "https://github.com/horovod/horovod/blob/master/horovod/torch/compression.py"


@dataclass(frozen=True)
class Cell:
    """One claim.

    Args:
        value: "yes", "no", "part", "none" (there is nothing to do), or how it failed.
        how: RUN or QUOTED.
        source: where it is quoted from.
    """

    value: str
    how: str
    source: str = ""


Row = EncodeTimelineRow


def quoted(value: str, source: str) -> Cell:
    """A cell that was read, not run."""
    return Cell(value, QUOTED, source)


def row(framework: str, method: str, *cells: Cell) -> Row:
    """A row as JSON values; the cells are in the order of the columns."""
    ddp, fsdp2, feedback, resume, cpu = map(_cell, cells)
    return {
        "framework": framework,
        "method": method,
        "ddp": ddp,
        "fsdp2": fsdp2,
        "feedback": feedback,
        "resume": resume,
        "cpu": cpu,
    }


def _cell(cell: Cell) -> PeerCell:
    return {"value": cell.value, "how": cell.how, "source": cell.source}


@dataclass(frozen=True)
class Trial:
    """Something to run in processes of its own.

    Args:
        body: a function of `peers`.
        args: of it.
        ranks: processes.
        attempts: how often at most, while it hangs: to see what it does when it does not.
    """

    body: Callable[..., str]
    args: tuple[Any, ...]
    ranks: int = RANKS
    attempts: int = 1


def trials(hooks: tuple[str, ...], accelerate: tuple[str, ...], folder: str) -> dict[str, Trial]:
    """All that is run, by name."""
    found = {"fsdp2": Trial(peers.under_fsdp2, (hooks,)), "tightgrad": Trial(peers.tightgrad, (folder,))}
    found |= {f"cpu {hook}": Trial(peers.under_ddp, (hook,)) for hook in hooks}
    for hook in filter(_has_state, hooks):
        found[f"feedback {hook}"] = Trial(peers.feeds_back, (hook,), 1)
        found[f"resume {hook}"] = Trial(peers.resumes, (hook,), 1, attempts=3)
    if find_spec("accelerate") is not None:
        found |= {f"accelerate {kind}": Trial(peers.under_accelerate, (kind,)) for kind in accelerate}
    return found


def _has_state(hook: str) -> bool:
    return "powerSGD" in hook


def run_trials(todo: dict[str, Trial], seconds: float, report: Report) -> dict[str, str]:
    """What came out of each, two at a time; of ranks that do not agree, all that they say."""

    def run(trial: Trial) -> str:
        said: list[str] = []
        for _ in range(trial.attempts):
            said = outcomes(trial.ranks, trial.body, *trial.args, seconds=seconds)
            if HANGS not in said:
                break
        return " / ".join(sorted(set(said)))

    found: dict[str, str] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {name: pool.submit(run, trial) for name, trial in todo.items()}
        for name, future in futures.items():
            found[name] = future.result()
            report(len(found) / len(todo), name)
    return found


def _part(outcome: str, name: str) -> Cell:
    """One entry of a trial that reports several; all of it if it did not come to an end."""
    try:
        return Cell(json.loads(outcome)[name], RUN)
    except ValueError:
        return Cell(outcome, RUN)


def torch_row(hook: str, found: dict[str, str]) -> Row:
    """One of torch's hooks. It is run on the CPU; that it works under DDP on NCCL is quoted."""
    fed, resumed = found.get(f"feedback {hook}"), found.get(f"resume {hook}")
    source = _QUANTIZATION if "quantization" in hook else _TORCH
    return row(
        "PyTorch",
        hook,
        quoted("yes", source),
        _part(found["fsdp2"], hook),
        quoted("no", source) if fed is None else Cell(fed, RUN),
        quoted("none", source) if resumed is None else Cell(resumed, RUN),
        Cell(found[f"cpu {hook}"], RUN),
    )


def accelerate_row(kind: str, found: dict[str, str]) -> Row:
    """A hook of torch that Accelerate registers; its state is the user's to keep."""
    cpu = found.get(f"accelerate {kind}")
    stateful = kind == "power_sgd"
    return row(
        "Accelerate",
        f"comm_hook={kind}",
        quoted("yes", _ACCELERATE),
        quoted("no", _ACCELERATE),
        quoted("yes" if stateful else "no", _ACCELERATE),
        quoted("no" if stateful else "none", _ACCELERATE),
        quoted("part", _ACCELERATE) if cpu is None else Cell(cpu, RUN),
    )


def quoted_rows() -> list[Row]:
    """Projects that bring an engine, a launcher or a GPU of their own."""
    return [
        row(
            "DeepSpeed",
            "1-bit Adam",
            quoted("no", _DEEPSPEED),
            quoted("no", _DEEPSPEED),
            quoted("yes", _DEEPSPEED),
            quoted("part", _DEEPSPEED),
            quoted("no", _DEEPSPEED),
        ),
        row(
            "torchft",
            "allreduce_quantized",
            quoted("part", _TORCHFT),
            quoted("part", _TORCHFT),
            quoted("no", _TORCHFT),
            quoted("none", _TORCHFT),
            quoted("no", _TORCHFT),
        ),
        row(
            "hivemind",
            "PowerSGDGradientAverager",
            quoted("no", _HIVEMIND),
            quoted("no", _HIVEMIND),
            quoted("yes", _HIVEMIND),
            quoted("part", _HIVEMIND),
            quoted("yes", _HIVEMIND),
        ),
        row(
            "Horovod",
            "Compression.fp16",
            quoted("no", _HOROVOD),
            quoted("no", _HOROVOD),
            quoted("no", _HOROVOD),
            quoted("none", _HOROVOD),
            quoted("yes", _HOROVOD),
        ),
    ]


def tightgrad_row(found: dict[str, str]) -> Row:
    """Everything is run, on the CPU."""
    cells = {name: _part(found["tightgrad"], name) for name in ("ddp", "fsdp2", "feedback", "resume")}
    return row("TightGrad", "IntBlock(4), two_shot", *cells.values(), cells["ddp"])


def make_table(hooks: tuple[str, ...], accelerate: tuple[str, ...], seconds: float, report: Report) -> list[Row]:
    """All rows.

    Args:
        hooks: of torch, by name.
        accelerate: kinds of hook that Accelerate registers.
        seconds: how long a run may take before it counts as hanging.
        report: told of the progress.
    """
    with tempfile.TemporaryDirectory(prefix="tightgrad-") as folder:
        found = run_trials(trials(hooks, accelerate, folder), seconds, report)
    return [
        *(torch_row(hook, found) for hook in hooks),
        *(accelerate_row(kind, found) for kind in accelerate),
        *quoted_rows(),
        tightgrad_row(found),
    ]
