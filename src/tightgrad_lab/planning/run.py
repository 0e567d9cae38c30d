"""`tightgrad plan`: measure on ranks, predict, choose."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tightgrad_lab.audit.specification import Specification, load
from tightgrad_lab.common.recommended import RECOMMENDED
from tightgrad_lab.errors import RunError
from tightgrad_lab.planning.advise import Advice, advise
from tightgrad_lab.planning.cost import Compute, PathCost
from tightgrad_lab.planning.link import Call, Link, measure_link
from tightgrad_lab.planning.measure import crowding, measure_compute, measure_path
from tightgrad_lab.planning.memory import Footprint, available_nbytes, footprint
from tightgrad_lab.training.ranks import Rank, Send, run_ranks

REPEATS = 7
LARGEST_SIDE = 1024
FORWARD_SHARE = 1 / 3
"""Of a step that is given as one number: a backward takes twice a forward."""


@dataclass(frozen=True)
class Question:
    """What is asked.

    Args:
        file: gives model, micro-batches and loss, as for `tightgrad audit`; None takes the next two.
        num_parameters: of a model of square matrices.
        step_seconds: of its forward, backward and optimizer.
        ranks: of the run.
        link: None measures it between the ranks.
        memory_nbytes: of one rank; None is this rank's part of what the machine has.
    """

    file: Path | None
    num_parameters: int
    step_seconds: float
    ranks: int
    link: Link | None
    memory_nbytes: int | None = None


@dataclass(frozen=True)
class Answer:
    """What was measured, and the advice."""

    link: Link
    compute: Compute
    num_parameters: int
    paths: dict[str, PathCost]
    advice: Advice
    memory: Footprint
    available_nbytes: int


class Matrices(nn.Module):
    """As many parameters as asked, in square matrices and a rest."""

    def __init__(self, num_parameters: int) -> None:
        super().__init__()
        side = min(LARGEST_SIDE, max(1, math.isqrt(num_parameters)))
        whole, rest = divmod(num_parameters, side * side)
        shapes: list[tuple[int, ...]] = [(side, side)] * whole + [(rest,)] * (rest > 0)
        self.matrices = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])


def answer(question: Question, progress: Callable[[str], object] = lambda line: None) -> Answer | None:
    """Measure on `question.ranks` ranks (those of torchrun, or local ones), or in this process if the link is given.

    Under torchrun rank 0 has the answer, the others None.

    Raises:
        RunError: a rank failed.
        ArgumentError: the file is not one.
    """
    if question.file is not None:
        load(question.file)  # what is wrong with it is said here, not by a rank
    found: list[dict[str, Any]] = []
    if question.link is None:
        run_ranks(question.ranks, _on_rank, (question,), lambda message: _receive(message, found, progress))
    else:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found.append(_measured(question, question.link, _subject(question, progress), 1, progress))
        finally:
            torch.set_num_threads(threads)
    if not found:
        if os.environ.get("RANK", "0") != "0":
            return None
        raise RunError("rank 0 ended without a measurement.")
    return _answer(found[0], question)


def _silent(message: Any) -> None:
    pass


def _receive(message: Any, found: list[dict[str, Any]], progress: Callable[[str], object]) -> None:
    if isinstance(message, str):
        progress(message)
    else:
        found.append(message)


def _on_rank(rank: Rank, send: Send, question: Question) -> None:
    tell: Send = send if rank.rank == 0 else _silent
    tell("the link")
    link = measure_link()
    dist.barrier()
    subject = _subject(question, tell)
    if rank.rank == 0:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", rank.ranks))
        send(_measured(question, link, subject, local, tell))
    dist.barrier()


@dataclass(frozen=True)
class _Subject:
    """A model, and what was measured of its step."""

    model: nn.Module
    compute: Compute
    memory: Footprint


def _subject(question: Question, progress: Callable[[str], object]) -> _Subject:
    progress("the model's step")
    if question.file is not None:
        return _own(load(question.file))
    model = Matrices(question.num_parameters)
    backward = (1 - FORWARD_SHARE) * question.step_seconds
    compute = Compute(FORWARD_SHARE * question.step_seconds, backward, 0.0)
    return _Subject(model, compute, footprint(model, torch.optim.AdamW(model.parameters(), 0.0), None))


def _measured(
    question: Question, link: Link, subject: _Subject, local_ranks: int, progress: Callable[[str], object]
) -> dict[str, Any]:
    paths = {}
    for name, plan in RECOMMENDED.items():
        progress(name)
        paths[name] = asdict(measure_path(subject.model, plan, question.ranks, REPEATS, crowding(local_ranks)))
    numels = [parameter.numel() for parameter in subject.model.parameters() if parameter.requires_grad]
    available = available_nbytes(local_ranks) if question.memory_nbytes is None else question.memory_nbytes
    about = {"numels": numels, "memory": subject.memory, "available_nbytes": available}
    return {"link": asdict(link), "compute": asdict(subject.compute), "paths": paths, **about}


def _own(asked: Specification) -> _Subject:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = asked.build_model()
    made = asked.make_batches(4, False)
    batches: Iterator[Any] = cycle(made)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return asked.loss(model, batch)[0]

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 0.0)
    memory = footprint(model, optimizer, (lambda batch: loss(model, batch), made[0]))
    return _Subject(model, measure_compute(model, optimizer, loss, batches, REPEATS), memory)


def _answer(found: dict[str, Any], question: Question) -> Answer:
    link, compute = Link(**found["link"]), Compute(**found["compute"])
    paths = {
        name: PathCost(path["seconds"], tuple(Call(**call) for call in path["calls"]))
        for name, path in found["paths"].items()
    }
    numels, memory, available = found["numels"], found["memory"], found["available_nbytes"]
    advice = advise(compute, numels, paths, question.ranks, link, memory, available)
    return Answer(link, compute, sum(numels), paths, advice, memory, available)
