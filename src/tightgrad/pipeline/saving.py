"""One call that saves a whole training loop, and one that takes it up again."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tightgrad.checkpoint.folder import has_checkpoint
from tightgrad.checkpoint.save_folder import Newest
from tightgrad.checkpoint.saved_parts import Part
from tightgrad.checkpoint.training_state import Read, read_training
from tightgrad.core.collective import failed_ranks
from tightgrad.core.errors import CheckpointError, StateMismatchError, TightGradError
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.prepared import parts_of, pipe_of, prepare
from tightgrad.pipeline.resumed import Resumed


def save(
    folder: str | Path,
    model: nn.Module,
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    pipe: GradientPipeline,
    scheduler: Any = None,
    loader: Any = None,
    *,
    extra: Mapping[str, Any] | None = None,
    keep: int | None = None,
) -> Path:
    """Save everything that a run needs to go on as if it had not stopped. Collective: every rank must call it.

    That is the model, its optimizers, the pipeline with its residuals and an open window, the schedulers and the
    GradScaler that `attach` was given, Python's, NumPy's and torch's random generators of each rank, and what is passed
    beside. A rank that is killed in a save leaves the checkpoint before in force. Tensors are written by
    `torch.distributed.checkpoint`: those that all ranks have once, shards by the ranks that hold them, and what differs
    by rank for each rank. It returns when all is on the disk; `tg.save_async` when all is copied. Load only files that
    you trust: like torch's own, they may run code when loaded.

    Args:
        folder: of this run's checkpoints, on a disk that all ranks share.
        model: as it was attached, in its wrapper.
        optimizers: one, or all that the loop steps.
        pipe: made by `attach` on the model.
        scheduler: one, or a list, that the loop steps itself; those that were given to `attach` are saved anyway.
        loader: of the batches. If it has `state_dict` and `load_state_dict`, as torchdata's `StatefulDataLoader` has,
            its place is saved; save between two windows then. The place in any other loader is the number of batches
            that `load` returns.
        extra: what else has state, by a name of your own: a model of averaged weights, a sampler, a second pipeline, a
            random generator, or a dict of numbers.
        keep: how many complete checkpoints of this folder are left, the newest ones; what a killed save has left is
            removed as well. None removes nothing.

    Returns:
        The new checkpoint's own folder.

    Raises:
        ConfigError: an argument is not what is asked for, or something in `extra` has no state.
        UsageError: the loader has state, and stands behind a window that has begun.
        CheckpointError: on every rank, if any could not write; the checkpoint before stays in force.

    Examples:
        >>> import tempfile, torch, tightgrad as tg
        >>> folder = tempfile.mkdtemp()
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> pipe = tg.attach(model, optimizer, tg.Plan(clip=tg.clip.GlobalNorm(1.0)))
        >>> for window in pipe.windows([torch.ones(3, 4)] * 5):
        ...     for batch in window:
        ...         pipe.backward(model(batch).square().mean())
        ...     record = pipe.step()
        ...     path = tg.save(folder, model, optimizer, pipe, keep=2)
        >>> path.name
        'step-00000005'
        >>> tg.load(folder, model, optimizer, pipe)
        5
    """
    pipe_of(pipe).wait_for_save()
    prepared = prepare(folder, model, optimizers, pipe, scheduler, loader, extra, keep)
    written = prepared.write(pipe.adapter.collective)
    pipe.count_sent(prepared.sent_nbytes)
    return written


def load(
    folder: str | Path,
    model: nn.Module,
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    pipe: GradientPipeline,
    scheduler: Any = None,
    loader: Any = None,
    *,
    extra: Mapping[str, Any] | None = None,
    plan_may_differ: bool = False,
    missing_ok: bool = False,
) -> int:
    """Take up the newest complete checkpoint of `save`; return how many batches the loop has to skip. Collective: every
    rank must call it, before the first window.

    Model, optimizers and pipeline are made as for a run that begins, and are filled. On the same number of ranks the
    run goes on bit by bit as if it had not stopped, under the same wrapper and torch. On another number of ranks, or
    under another wrapper, residuals are handed over as `pipe.load` does, each rank takes the random generators of the
    rank of its number, and what was not the same on all ranks is refused by name.

    Args:
        folder: that `save` was given.
        model: with the parameters that were saved.
        optimizers: of the same classes, with the same parameters in the same groups; their settings, such as the
            learning rate, are those that were saved.
        pipe: attached with the plan that was saved.
        scheduler: as for `save`.
        loader: as for `save`.
        extra: as for `save`; everything that was saved has to be there.
        plan_may_differ: whether to go on with another plan than was saved, for example with other micro-batches on
            another number of ranks. What the plan's methods remember still has to fit.
        missing_ok: whether a folder without any checkpoint is a run that begins: nothing is loaded, and 0 is returned.

    Returns:
        The number of batches that this rank had consumed, with which the loop begins:
        `itertools.islice(batches, first, None)`. 0 if the loader's own place was restored.

    Raises:
        CheckpointError: on every rank, if there is none, or any rank's files are missing or damaged.
        StateMismatchError: the same, where they do not fit this rank's model, optimizers, plan or number of ranks.
            Nothing has changed then.

    Examples:
        >>> import tempfile, torch, tightgrad as tg
        >>> folder = tempfile.mkdtemp()
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> pipe = tg.attach(model, optimizer, tg.Plan(clip=tg.clip.GlobalNorm(1.0)))
        >>> tg.load(folder, model, optimizer, pipe, missing_ok=True)
        0
    """
    source, collective = Path(folder), pipe_of(pipe).adapter.collective
    pipe.wait_for_save()
    pipe.ownership.check()
    parts = parts_of(model, optimizers, pipe, scheduler, loader, extra)
    if missing_ok and not has_checkpoint(source, collective):
        return 0
    found: list[Read] = []

    def read(state: Mapping[str, Any], newest: Newest) -> None:
        try:
            target = source / newest.name
            here = collective.rank, collective.world_size
            found[:] = [read_training(target, newest.world_size, state["save"], parts, *here)]
        except TightGradError:
            raise
        except Exception as error:  # of what a user's object does; the other ranks must hear of it
            raise CheckpointError(f"{source / newest.name} cannot be read: {type(error).__name__}: {error}.") from error
        if not plan_may_differ:
            _check_same_plan(found[0].plan, pipe.plan.to_config())

    state = pipe._read(source, read)
    (taken,) = found
    _put_all({name: part for name, part in parts.items() if name in taken.states}, taken.states, source, pipe)
    pipe.load_state_dict(state)
    if taken.resumed is not None:
        pipe.resume(Resumed.from_saved(taken.resumed))
    return 0 if "loader" in taken.states else int(state["num_consumed"])


def _put_all(parts: Mapping[str, Part], states: Mapping[str, Any], source: Path, pipe: GradientPipeline) -> None:
    """Put everything back. Collective, since what a user's object refuses on one rank is undone on all."""
    others = {name: part for name, part in parts.items() if not part.is_checked}
    before: dict[str, Any] = {}
    cause: Exception | None = None
    try:
        for name, part in others.items():
            before[name] = deepcopy(part.take())
            part.put(states[name])
    except Exception as error:
        cause = error
        cause.add_note(f"raised by {name}")
    failed = failed_ranks(cause, pipe.adapter.collective)
    if failed:
        for name, state in before.items():
            with suppress(Exception):
                others[name].put(state)
        here = f" Here: {name}: {type(cause).__name__}: {cause}." if cause is not None else ""
        raise StateMismatchError(
            f"rank {', '.join(map(str, failed))} cannot take up {source}, and nothing was loaded.{here}"
        ) from cause
    for name, part in parts.items():
        if part.is_checked:
            part.put(states[name])


def _check_same_plan(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before, after = _settings(saved), _settings(now)
    differ = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if differ:
        said = [f"{key} was {before.get(key)!r} and is {after.get(key)!r}" for key in differ]
        raise StateMismatchError(
            f"the plan is not the one that was saved: {'; '.join(said)}. Attach with the plan that was saved, or pass "
            "plan_may_differ=True to load() to go on with this one; nothing was loaded."
        )


def _settings(config: Any, path: str = "") -> dict[str, Any]:
    """The values of a plan by their dotted names."""
    if not isinstance(config, Mapping):
        return {path: config}
    inner = [_settings(value, f"{path}.{key}" if path else str(key)) for key, value in config.items()]
    return {name: value for settings in inner for name, value in settings.items()}
