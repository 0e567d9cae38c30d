"""Schedulers of the learning rate and samplers of data: when they go on."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DistributedSampler

from tightgrad_lab.audit.script.places import caller
from tightgrad_lab.audit.script.recorder import Recorder
from tightgrad_lab.audit.script.records import Scheduled

HORIZONS = ("T_max", "total_steps")


def install(recorder: Recorder) -> None:
    """Tell the recorder of every step of a scheduler, and of epochs that a sampler draws in the same order."""
    step = LRScheduler.step

    def watched_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        ledger = recorder.ledger
        ledger.schedules.append(
            Scheduled(
                caller(),
                type(self).__name__,
                len(ledger.backwards),
                len(ledger.steps),
                _horizon(self),
                recorder.batches,
            )
        )
        return step(self, *args, **kwargs)

    LRScheduler.step = watched_step  # type: ignore[method-assign]
    draw = DistributedSampler.__iter__
    drawn: set[tuple[int, int]] = set()

    def watched_draw(self: Any) -> Iterator[Any]:
        key, before = (id(self), self.epoch), len(recorder.ledger.backwards)
        again, trains = key in drawn, False
        for index in draw(self):
            if not trains and len(recorder.ledger.backwards) > before and torch.is_grad_enabled():
                trains = True
                drawn.add(key)
                if again and self.shuffle:
                    recorder.ledger.repeated = caller()
            yield index

    DistributedSampler.__iter__ = watched_draw  # type: ignore[method-assign]


def _horizon(scheduler: Any) -> int | None:
    """How many steps a scheduler is made for, where it says so: in torch's attributes, or those Hugging Face binds."""
    found = [getattr(scheduler, name, None) for name in HORIZONS]
    for one in getattr(scheduler, "lr_lambdas", ()):
        found += [one.keywords.get("num_training_steps")] if isinstance(one, partial) else []
    return next((one for one in found if isinstance(one, int)), None)
