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
_GITHUB = "https://github.com"
_PYTORCH = f"{_GITHUB}/pytorch/pytorch/blob/cf30153c4c131c8164ee7798e5022d810682e2cb/torch"
_HOOKS = f"{_PYTORCH}/distributed/algorithms/ddp_comm_hooks"
_TORCH = f"{_HOOKS}/__init__.py#L59-L110"
_QUANTIZATION = f"{_HOOKS}/quantization_hooks.py#L46-L220"
_ACCELERATE = (
    f"{_GITHUB}/huggingface/accelerate/blob/16cb6eb80dd9aa8b4df1a63ef57863e455d53b83"
    "/src/accelerate/utils/dataclasses.py#L202-L239"
)
_TORCHFT = (
    f"{_GITHUB}/meta-pytorch/torchft/blob/7eb7087885f7ffaf51148a9df3289d73b8709fbd/torchft/collectives.py#L297-L402"
)
_HIVEMIND = (
    f"{_GITHUB}/learning-at-home/hivemind/blob/4bd43b77895019b20d18d81d0d0c1a5ab9a10847"
    "/hivemind/optim/power_sgd_averager.py#L28-L222"
)
_DEEPSPEED = (
    f"{_GITHUB}/deepspeedai/DeepSpeed/blob/edaa7221267243c7be7fb49c5d5f5c4fb97b4641"
    "/deepspeed/runtime/fp16/onebit/adam.py#L87-L308"
)
_HOROVOD = (
    f"{_GITHUB}/horovod/horovod/blob/2626dc87a3a8eb8fb7d2216198ce45bce0f9e65a/horovod/torch/compression.py#L46-L74"
)
READ = "2026-11-30"
"""When the quoted sources were last read, at the commits that they name."""


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
            quoted("no", _DEEPSPEED),
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
