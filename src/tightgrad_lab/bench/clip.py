"""`tightgrad bench clip`: clipping next to torch's own and to other libraries, in paired runs.

Every run gets new gradients (normal, times 0.01: no denormals). A pair is ours and torch's on the same gradients, one
after the other, in turn first; the ratio is the median over pairs. Nine of them are good to 3 % on a machine with
other tenants, 61 to 1 %.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.clip.fold import folded
from tightgrad.clip.norm import total_norm
from tightgrad.clip.one_factor import clip_coefficient
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import State
from tightgrad_lab.bench.clip_peers import Step, clip_peers
from tightgrad_lab.bench.passes import MemoryTraffic
from tightgrad_lab.errors import ArgumentError

SIZES = (25_000_000, 100_000_000)
TENSORS = (10, 100, 1000)
SCALE = 0.01
ACTIVE, INACTIVE = 0.5, 10.0  # max_norm over the norm
PAIRS = 9
PAIRS_OF = {"clip_grad_norm": 61}
"""Of the row that must never be slower than torch."""
SLACK = 1 << 16
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-6, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, fused=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-6, fused=True),
}


@dataclass(frozen=True)
class Subject:
    """What is timed: a name, and a function of parameters (with gradients) and max_norm."""

    name: str
    step: Step
    optimizer: str = "none"


def run(
    sizes: Sequence[int] = SIZES,
    tensors: Sequence[int] = TENSORS,
    repeats: int | None = None,
    warm_up: int = 2,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[str], object] = lambda line: None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure; of the rows, those with one of `names`, or all. `repeats` are pairs, if not PAIRS or PAIRS_OF the row.

    Raises:
        ArgumentError: there is no such row.

    Returns:
        {"rows": one for each subject, size, number of tensors and activity; "missing": peers that are not installed,
        and fused optimizers that torch has not for this device}.
        A ratio is a time over that of `torch.nn.utils.clip_grad_norm_` (then the fused step, where an optimizer is
        named); below 1 is faster. `ratio_quartiles` are those of the pairs. `memory_bytes_per_parameter` is counted,
        not timed.
    """
    _check_names(names, device)
    chooser = random.Random(seed)
    rows = []
    missing = list(clip_peers()[1])
    for num_parameters in sizes:
        pool = torch.randn(num_parameters + SLACK, device=device, generator=torch.Generator(device).manual_seed(seed))
        pool *= SCALE
        for num_tensors in tensors:
            parameters = _parameters(num_parameters // num_tensors, num_tensors, device)
            for base, subjects in _comparisons(parameters, num_tensors == tensors[0], missing):
                for active in (True, False):
                    max_norm = SCALE * num_parameters**0.5 * (ACTIVE if active else INACTIVE)
                    for subject in (one for one in subjects if not names or one.name in names):
                        progress(f"{subject.name} {subject.optimizer}, {num_parameters:,} in {num_tensors}")
                        pairs = repeats or PAIRS_OF.get(subject.name, PAIRS)
                        ratios = _ratios(base, subject, parameters, max_norm, pool, chooser, pairs, warm_up)
                        _redraw(parameters, pool, chooser)
                        with MemoryTraffic() as traffic:
                            subject.step(parameters, max_norm)
                        rows.append(
                            {
                                "name": subject.name,
                                "optimizer": subject.optimizer,
                                "num_parameters": num_parameters,
                                "num_tensors": num_tensors,
                                "active": active,
                                "ratio_to_torch": statistics.median(ratios),
                                "ratio_quartiles": statistics.quantiles(ratios)[::2] if pairs > 1 else ratios * 2,
                                "pairs": pairs,
                                "threads": torch.get_num_threads(),
                                "memory_bytes_per_parameter": traffic.nbytes / num_parameters,
                            }
                        )
    return {"rows": rows, "missing": sorted(set(missing))}


def _parameters(numel: int, count: int, device: str) -> list[nn.Parameter]:
    width = next(width for width in (1024, 1000, 500, 250, 100, 10, 1) if numel % width == 0)
    made = [nn.Parameter(torch.full((numel // width, width), 0.1, device=device)) for _ in range(count)]
    for parameter in made:
        parameter.grad = torch.zeros_like(parameter)
    return made


def _redraw(parameters: list[nn.Parameter], pool: Tensor, chooser: random.Random) -> None:
    start = chooser.randrange(SLACK)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(pool[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


def _check_names(names: Sequence[str], device: str) -> None:
    comparisons = _comparisons(_parameters(1, 1, device), True, [])
    known = sorted({subject.name for _, subjects in comparisons for subject in subjects})
    for name in names:
        if name not in known:
            raise ArgumentError(f"--row {name!r} is unknown; choose from: {', '.join(known)}.")


def _ratios(
    base: Subject,
    subject: Subject,
    parameters: list[nn.Parameter],
    max_norm: float,
    pool: Tensor,
    chooser: random.Random,
    repeats: int,
    warm_up: int,
) -> list[float]:
    ratios = []
    for index in range(warm_up + repeats):
        seconds = {}
        for one in (base, subject) if index % 2 else (subject, base):
            _redraw(parameters, pool, chooser)
            seconds[one] = _seconds(one.step, parameters, max_norm)
        if index >= warm_up:
            ratios.append(seconds[subject] / seconds[base])
    return ratios


def _seconds(step: Step, parameters: list[nn.Parameter], max_norm: float) -> float:
    _wait(parameters)
    start = time.perf_counter()
    step(parameters, max_norm)
    _wait(parameters)
    return time.perf_counter() - start


def _wait(parameters: list[nn.Parameter]) -> None:
    if parameters[0].device.type == "cuda":
        torch.cuda.synchronize()


def _comparisons(
    parameters: list[nn.Parameter], with_optimizers: bool, missing: list[str]
) -> Iterator[tuple[Subject, list[Subject]]]:
    theirs = Subject("torch", lambda parameters, max_norm: torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    subjects = [
        Subject("clip_grad_norm", lambda parameters, max_norm: tg.clip_grad_norm_(parameters, max_norm)),
        *(Subject(clipper.card.id, _method(clipper)) for clipper in _clippers()),
        *(Subject(name, make()) for name, make in clip_peers()[0].items()),
    ]
    yield theirs, subjects
    for name, make in OPTIMIZERS.items() if with_optimizers else ():
        if not _runs_on(make, parameters[0].device):
            missing.append(f"fused {name}")
            continue
        optimizer = make(parameters)

        def torch_step(
            parameters: list[nn.Parameter], max_norm: float, optimizer: torch.optim.Optimizer = optimizer
        ) -> None:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
            optimizer.step()

        def fold(parameters: list[nn.Parameter], max_norm: float, optimizer: torch.optim.Optimizer = optimizer) -> None:
            norm = tg.get_total_norm([p.grad for p in parameters if p.grad is not None])
            with folded(optimizer, clip_coefficient(norm, max_norm)):
                optimizer.step()

        def multiply(
            parameters: list[nn.Parameter], max_norm: float, optimizer: torch.optim.Optimizer = optimizer
        ) -> None:
            tg.clip_grad_norm_(parameters, max_norm)
            optimizer.step()

        yield (
            Subject("torch", torch_step, name),
            [Subject("fold", fold, name), Subject("multiply", multiply, name)],
        )


def _runs_on(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], device: torch.device) -> bool:
    """Whether torch has the fused step for this device."""
    probe = nn.Parameter(torch.zeros(8, device=device))
    probe.grad = torch.zeros_like(probe)
    try:
        make([probe]).step()
    except RuntimeError:
        return False
    return True


def _clippers() -> list[Clipper]:
    return [
        tg.clip.PerTensorNorm(1.0),
        tg.clip.AGC(),
        tg.clip.ZClip(warmup_steps=2),
        tg.clip.AutoClip(),
        tg.clip.AdaGC(),
    ]


def _method(clipper: Clipper) -> Step:
    state: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(parameters: list[nn.Parameter], max_norm: float) -> None:
        named = {str(index): parameter for index, parameter in enumerate(parameters)}
        grads = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
        new: State = clipper.clip_(grads, named, total_norm, state).state
        state.update({slot: {**state.get(slot, {}), **values} for slot, values in new.items()})

    return step
