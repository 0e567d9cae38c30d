"""Ranks that a script starts itself: each process of the audit is one of them, and runs what the script gave it."""

import os
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from types import CodeType
from typing import Any

import torch

Say = Callable[[str], None]
DEPTH = 4
JOINS = "init_process_group"


def install(say: Say) -> None:
    """Let `torch.multiprocessing.spawn`, and processes that join a process group, run here."""

    def spawn(fn: Any, args: Any = (), nprocs: int = 1, *more: Any, **options: Any) -> None:
        say(f"torch.multiprocessing.spawn of {nprocs}: the audit's {_ranks()}, each started with the whole script")
        fn(_rank(), *_of_ranks(tuple(args), nprocs))

    vars(torch.multiprocessing).update(spawn=spawn, start_processes=spawn)
    ahead: list[Any] = []
    start, join, is_alive, exitcode = BaseProcess.start, BaseProcess.join, BaseProcess.is_alive, BaseProcess.exitcode

    def run() -> None:
        begun = list(ahead)
        ahead.clear()
        if begun:
            say(f"{len(begun)} processes that the script starts: the audit's {_ranks()}, each with the whole script")
            _run_one(begun)

    def started(self: Any) -> None:
        if os.environ.get("TIGHTGRAD_PARENT") and _joins(getattr(self, "_target", None)):
            self._tightgrad_here = True
            ahead.append(self)
        else:
            start(self)

    def joined(self: Any, timeout: float | None = None) -> None:
        if not hasattr(self, "_tightgrad_here"):
            join(self, timeout)
        run()

    def living(self: Any) -> bool:
        if not hasattr(self, "_tightgrad_here"):
            return is_alive(self)
        run()
        return False

    def code(self: Any) -> int | None:
        if not hasattr(self, "_tightgrad_here"):
            found: int | None = exitcode.fget(self)  # type: ignore[attr-defined]  # a property
            return found
        run()
        return 0

    changed: Any = BaseProcess
    changed.start, changed.join, changed.is_alive, changed.exitcode = started, joined, living, property(code)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def _run_one(processes: Sequence[Any]) -> None:
    """Run what the process of this rank was given; where there are fewer, what the first one was, with another rank."""
    count, rank = len(processes), _rank()
    chosen = processes[min(rank, count - 1)]
    given = [(*one._args, *one._kwargs.values()) for one in processes]
    places = [place for place, values in enumerate(zip(*given, strict=False)) if _counts_up(values)]
    values = [rank if place in places else one for place, one in enumerate(_of_ranks(tuple(given[0]), count, places))]
    if rank < count and not places:
        values = list(given[rank])
    plain = len(chosen._args)
    chosen._target(*values[:plain], **dict(zip(chosen._kwargs, values[plain:], strict=True)))


def _counts_up(values: tuple[Any, ...]) -> bool:
    return all(isinstance(one, int) and one == place for place, one in enumerate(values))


def _of_ranks(values: tuple[Any, ...], count: int, but: Sequence[int] = ()) -> tuple[Any, ...]:
    """The arguments with the number of ranks in place of the one that is the number of processes."""
    same = [place for place, one in enumerate(values) if type(one) is int and one == count and place not in but]
    if count == _ranks() or len(same) != 1:
        return values
    return tuple(_ranks() if place in same else one for place, one in enumerate(values))


def _joins(target: Any) -> bool:
    """Whether a function calls `init_process_group`, itself or by functions of its module."""
    found, ahead = set(), [getattr(target, "func", target)]
    for _ in range(DEPTH):
        written = [one for one in ahead if isinstance(getattr(one, "__code__", None), CodeType)]
        names = {name: one.__globals__ for one in written for name in _names(one.__code__)}
        if JOINS in names:
            return True
        ahead = [space[name] for name, space in names.items() if name in space and name not in found]
        found |= set(names)
    return False


def _names(code: CodeType) -> set[str]:
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return {*code.co_names, *(name for one in inner for name in _names(one))}
