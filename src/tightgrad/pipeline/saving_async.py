"""A save that is written while training goes on: state is copied now, and the copy goes the way of every save later.

What is written, and when it counts, is `tg.save`'s own: only the ranks talk over a process group made for it, in a
thread, so that nothing meets the collectives of training.
"""

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tightgrad.checkpoint import tree
from tightgrad.checkpoint.training_state import Taken
from tightgrad.collectives.backends import gloo_group
from tightgrad.collectives.dcp import let_torch_be_quiet
from tightgrad.collectives.single import SingleCollective
from tightgrad.collectives.torch_dist import TorchCollective
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.protocols import Collective
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.prepared import Prepared, agreed, pipe_of, prepare

_WRITERS: "weakref.WeakKeyDictionary[GradientPipeline, _Writer]" = weakref.WeakKeyDictionary()


def save_async(
    folder: str | Path,
    model: nn.Module,
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    pipe: GradientPipeline,
    scheduler: Any = None,
    loader: Any = None,
    *,
    extra: Mapping[str, Any] | None = None,
    keep: int | None = None,
) -> "Future[Path]":
    """Save as `tg.save` does, and return when everything is copied to the CPU, before it is written. Collective: every
    rank must call it.

    A thread writes the copy while training goes on. The checkpoint is the same as that of `tg.save`, and counts when
    all ranks have written their part; if the run is killed earlier, the previous checkpoint still counts. A pipeline
    writes one save at a time: its next save or load waits for this one, and raises what went wrong in it.

    Args:
        folder: as for `save`, as all other arguments.
        model: as it was attached, in its wrapper.
        optimizers: one, or all that the loop steps.
        pipe: made by `attach` on the model.
        scheduler: one, or a list, that the loop steps itself.
        loader: of the batches.
        extra: what else has state.
        keep: how many complete checkpoints are left, once this one is complete.

    Returns:
        Its `result()` waits, and is the new checkpoint's own folder. Call it before the end of the run and before
        `destroy_process_group`, or an error of the last save is lost.

    Raises:
        CheckpointError: on every rank, of the save before, whose checkpoint does not count; or, from `result()`, of
            this one.
        UnsupportedError: the ranks have no process group of torch's.
        ConfigError: as `save` does.
        UsageError: the same.

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
        ...     saved = tg.save_async(folder, model, optimizer, pipe, keep=2)
        >>> saved.result().name
        'step-00000005'
    """
    pipe_of(pipe).wait_for_save()
    collective = pipe.adapter.collective
    writer = _WRITERS.get(pipe) or _Writer(collective)
    _WRITERS[pipe] = writer
    prepared = prepare(folder, model, optimizers, pipe, scheduler, loader, extra, keep)
    copied = agreed(lambda: _copied(prepared), prepared.folder, collective)
    pipe.count_sent(prepared.sent_nbytes)
    let_torch_be_quiet()
    saved = writer.thread.submit(copied.write, writer.collective)
    pipe.under_way = saved.result
    return saved


class _Writer:
    """Holds the thread of one pipeline, and the ranks' way to talk in it. Collective: every rank must make it."""

    def __init__(self, collective: Collective) -> None:
        self.collective: Collective = SingleCollective()
        if collective.world_size > 1:
            group = getattr(collective, "group", None)
            if group is None:
                raise UnsupportedError(
                    f"save_async needs ranks with a process group of torch's, and these talk by "
                    f"{type(collective).__name__}; call tg.save, with the same arguments."
                )
            self.collective = TorchCollective(gloo_group(group))
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="tightgrad-save")


def _copied(prepared: Prepared) -> Prepared:
    """The same with copies in the place of everything that training changes."""
    taken, state = prepared.taken, prepared.make_state()
    rest, tensors = tree.tensors_apart(state, lambda value: isinstance(value, Tensor))
    copied = tree.together(rest, {path: _copy(tensor) for path, tensor in tensors.items()})
    own = Taken(deepcopy(taken.rest), {path: _copy(t) for path, t in taken.tensors.items()}, taken.checksums)
    return replace(prepared, taken=own, make_state=lambda: copied, about=deepcopy(prepared.about))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
