"""What one call saves of a whole training loop: looked up on this rank, and then written by all together."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from tightgrad.adapters.plain import unwrap
from tightgrad.checkpoint.folder import agree, save_state
from tightgrad.checkpoint.save_folder import step_of
from tightgrad.checkpoint.saved_parts import Part, module_part, object_part, optimizer_part, parameter_names
from tightgrad.checkpoint.training_state import MODEL, Taken, training_file_name
from tightgrad.collectives.dcp import WRITTEN
from tightgrad.core.check import check_integer
from tightgrad.core.errors import CheckpointError, ConfigError, TightGradError, UnsupportedError, UsageError
from tightgrad.core.protocols import Collective
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.premises.collaborators import check_model, checked_optimizers

_REMOVED = ".removed-"
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """Holds what one rank is to write of a training loop.

    Attributes:
        folder: of the run's checkpoints.
        taken: the state of all parts.
        make_state: returns the pipeline's.
        about: what else the rank's file holds.
        keep: how many checkpoints are left.
        sent_nbytes: by the pipeline, since its last record.
    """

    folder: Path
    taken: Taken
    make_state: Callable[[], Mapping[str, Any]]
    about: Mapping[str, Any]
    keep: int | None
    sent_nbytes: int

    def write(self, collective: Collective) -> Path:
        """Write it, put it in force and remove old ones. Collective: every rank must call it."""
        own = self.taken.own(collective)
        name = training_file_name(collective.rank, collective.world_size)
        written = save_state(
            self.make_state,
            self.folder,
            collective,
            lambda save_id: {name: self.taken.file(own, save_id, self.about)},
            lambda here: self.taken.write(own, here, collective),
        )
        if self.keep is not None and collective.rank == 0:
            with suppress(OSError):  # what is left over is no reason to end a run
                _remove_old(self.folder, written, self.keep)
        return written


def prepare(
    folder: str | Path,
    model: nn.Module,
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    pipe: GradientPipeline,
    scheduler: Any,
    loader: Any,
    extra: Mapping[str, Any] | None,
    keep: int | None,
) -> Prepared:
    """Look up everything that `save` writes; tensors are not copied. Collective: every rank must call it."""
    if keep is not None:
        check_integer("keep", keep, low=1)
    target = Path(folder)
    parts = parts_of(model, optimizers, pipe_of(pipe), scheduler, loader, extra)
    resumable = pipe.resumable()
    about = {
        "resumed": asdict(resumable),
        "plan": pipe.plan.to_config(),
        "buffers": [(name,) for name, _ in unwrap(model).named_buffers()],
    }

    def take() -> Taken:
        _check_loader_stands_at_a_window(pipe, loader)
        return Taken.of(parts)

    taken = agreed(take, target, pipe.adapter.collective)
    return Prepared(target, taken, pipe.state_dict, about, keep, resumable.sent_nbytes)


def agreed(make: Callable[[], T], target: Path, collective: Collective) -> T:
    """Return what `make` returns on this rank. Collective: where it raises on any rank, all raise."""
    made: list[T] = []
    cause: Exception | None = None
    try:
        made.append(make())
    except Exception as error:
        cause = error
    try:
        agree(cause, target, collective)
    except CheckpointError:
        if isinstance(cause, TightGradError):
            raise cause from None
        raise
    return made[0]


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


def parts_of(
    model: nn.Module, optimizers: Any, pipe: GradientPipeline, scheduler: Any, loader: Any, extra: Any
) -> dict[str, Part]:
    """Look up what is saved, by names for messages, in the order in which it is put back."""
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
