"""One call that saves a whole training loop, and one that takes it up again."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tightgrad.adapters.plain import unwrap
from tightgrad.checkpoint.folder import agree, has_checkpoint, save_state
from tightgrad.checkpoint.save_folder import Newest, step_of
from tightgrad.checkpoint.saved_parts import Part, module_part, object_part, optimizer_part, parameter_names
from tightgrad.checkpoint.training_state import MODEL, Read, Taken, read_training, training_file_name
from tightgrad.collectives.dcp import WRITTEN
from tightgrad.core.check import check_integer
from tightgrad.core.errors import (
    CheckpointError,
    ConfigError,
    StateMismatchError,
    TightGradError,
    UnsupportedError,
    UsageError,
)
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.premises.collaborators import check_model, checked_optimizers
from tightgrad.pipeline.resumed import Resumed

_REMOVED = ".removed-"


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
    by rank for each rank. It returns when all is on the disk; there is no asynchronous save. Load only files that you
    trust: like torch's own, they may run code when loaded.

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
    if keep is not None:
        check_integer("keep", keep, low=1)
    target, collective = Path(folder), pipe_of(pipe).adapter.collective
    parts = _parts(model, optimizers, pipe, scheduler, loader, extra)
    resumable = pipe.resumable()
    taken: Taken | None = None
    cause: Exception | None = None
    try:
        _check_loader_stands_at_a_window(pipe, loader)
        taken = Taken.of(parts)
    except Exception as error:
        cause = error
    try:
        agree(cause, target, collective)
    except CheckpointError:
        if isinstance(cause, TightGradError):
            raise cause from None
        raise
    assert taken is not None
    own = taken.own(collective)
    about = {
        "resumed": asdict(resumable),
        "plan": pipe.plan.to_config(),
        "buffers": [(name,) for name, _ in unwrap(model).named_buffers()],
    }
    name = training_file_name(collective.rank, collective.world_size)
    written = save_state(
        pipe.state_dict,
        target,
        collective,
        lambda save_id: {name: taken.file(own, save_id, about)},
        lambda here: taken.write(own, here, collective),
    )
    pipe.count_sent(resumable.sent_nbytes)
    if keep is not None and collective.rank == 0:
        with suppress(OSError):  # what is left over is no reason to end a run
            _remove_old(target, written, keep)
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
    pipe.ownership.check()
    parts = _parts(model, optimizers, pipe, scheduler, loader, extra)
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


def pipe_of(pipe: object) -> GradientPipeline:
    """Return the pipeline, if it is one that `attach` has made."""
    if isinstance(pipe, GradientPipeline):
        return pipe
    kind = type(pipe).__name__
    if kind == "OuterPipeline":
        raise UnsupportedError(
            "pipe is an OuterPipeline, whose models differ by rank between two outer steps; save each rank's model and "
            "optimizer in a file of its own, and the pipeline with outer.save()."
        )
    raise ConfigError(
        f"pipe is a {kind}; pass what tg.attach(model, optimizer, plan) returned: save(folder, model, optimizer, pipe)."
    )


def _parts(
    model: nn.Module, optimizers: Any, pipe: GradientPipeline, scheduler: Any, loader: Any, extra: Any
) -> dict[str, Part]:
    """What is saved, by names for messages, in the order in which it is put back."""
    check_model(model)
    if unwrap(model) is not unwrap(pipe.parts.premises.module):
        raise ConfigError("model is not the one that pipe was attached to; pass the model that attach() was given.")
    if extra is not None and not (isinstance(extra, Mapping) and all(isinstance(name, str) for name in extra)):
        raise ConfigError(f'extra is a {type(extra).__name__}; give objects by name, extra={{"ema": ema}}.')
    # FSDP2 puts whole parameters into the model in mid-window; the optimizers always have those of the adapter.
    names = parameter_names(unwrap(model)) | {
        id(parameter): name for name, parameter in pipe.adapter.parameters.items()
    }
    scaler = getattr(pipe.parts.scaling, "scaler", None)
    schedulers = _each_once(pipe.parts.optimizer.schedulers, _listed(scheduler))
    stepped = _each_once(pipe.optimizers, checked_optimizers(optimizers))
    parts = {MODEL: module_part("the model", unwrap(model))}
    for number, optimizer in enumerate(stepped):
        what = f"optimizer {number} ({type(optimizer).__name__})"
        if hasattr(optimizer, "consolidate_state_dict"):  # ZeroRedundancyOptimizer
            raise UnsupportedError(
                f"{what} holds the state of this rank's share of the parameters only, which has no place in a "
                "checkpoint. Shard with fully_shard in its place; or call optimizer.consolidate_state_dict(to=0), save "
                "its state_dict() and the model's on rank 0, and pipe.save(folder) on every rank."
            )
        parts[f"optimizer {number}"] = optimizer_part(what, optimizer, names)
    others = {f"scheduler {number}": one for number, one in enumerate(schedulers)}
    if scaler is not None:
        others["scaler"] = scaler
    if _has_state(loader):
        others["loader"] = loader
    others |= {f"extra[{name!r}]": given for name, given in (extra or {}).items()}
    for what, given in others.items():
        parts[what] = object_part(what, unwrap(given) if isinstance(given, nn.Module) else given, names)
    return parts


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
    told = pipe.adapter.collective.all_gather(
        torch.tensor([cause is not None], dtype=torch.int64, device="cpu").to(pipe.adapter.collective.control_device)
    )
    failed = told.view(-1).nonzero().view(-1).tolist()
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


def _check_loader_stands_at_a_window(pipe: GradientPipeline, loader: Any) -> None:
    if _has_state(loader) and not pipe.is_between_windows:
        raise UsageError(
            "the loader has given batches of a window that is not over, and going on from its place would lose them; "
            "save after pipe.step(), or leave loader out and skip the batches that load() counts."
        )


def _remove_old(folder: Path, written: Path, keep: int) -> None:
    """Leave the newest complete checkpoints of `save`, of which `written` is the newest, and what `pipe.save` wrote."""
    for name in os.listdir(folder):
        if name.startswith(_REMOVED):
            shutil.rmtree(folder / name, ignore_errors=True)
    found = [folder / name for name in os.listdir(folder) if step_of(name) is not None and name != written.name]
    complete = {path: (path / WRITTEN).stat().st_mtime_ns for path in found if (path / WRITTEN).exists()}
    cut_off = [path for path in found if path not in complete and _is_cut_off(path)]
    oldest = sorted(complete, key=lambda path: (complete[path], path.name))
    for path in [*cut_off, *oldest[: max(0, len(oldest) + 1 - keep)]]:
        removed = folder / f"{_REMOVED}{path.name}"
        path.rename(removed)  # first, so that what is half removed does not look like a checkpoint
        shutil.rmtree(removed, ignore_errors=True)


def _is_cut_off(path: Path) -> bool:
    """Whether a save was killed here. A rank writes its training file first, which `pipe.save` does not write."""
    names = os.listdir(path)
    return not names or any("training-" in name for name in names)


def _has_state(loader: Any) -> bool:
    return all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _each_once(first: Iterable[Any], more: Iterable[Any]) -> list[Any]:
    return list({id(one): one for one in (*first, *more)}.values())
