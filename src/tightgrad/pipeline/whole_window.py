"""A window that is run as a whole, since what gives its loss is known: in smaller pieces, or in two passes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from tightgrad.accumulate import Window
from tightgrad.accumulate.losses import checked_losses
from tightgrad.accumulate.oom import SmallerMicroBatches
from tightgrad.accumulate.representations import Encode
from tightgrad.accumulate.split import fresh
from tightgrad.pipeline.cached import Cached, LossOfAll, check_can_cache
from tightgrad.pipeline.parts import Parts
from tightgrad.pipeline.premises.loss_premise import LossOf
from tightgrad.pipeline.step import Step


@dataclass(frozen=True)
class WholeWindows:
    """Adds the gradients of all micro-batches of a window.

    Args:
        parts: of the pipeline.
        smaller: cuts micro-batches into pieces as memory demands.
    """

    parts: Parts
    smaller: SmallerMicroBatches

    def in_pieces(self, window: Window[Any], loss_of: LossOf, step: Step, renew: Callable[[], Step]) -> None:
        """Run all micro-batches, and again with smaller ones while memory runs out. Collective.

        Args:
            window: not iterated.
            loss_of: gives a batch's loss.
            step: of the window.
            renew: gives another step for it, from which the first one's gradients are gone.
        """
        current = [step]

        def backward(piece: Any, weights: Mapping[str, float]) -> None:
            with self.parts.adapter.micro_batch(0, 1):
                losses = checked_losses(loss_of(fresh(piece)), self.parts.plan.accumulate.losses)
                self.parts.ownership.take_grads()
                current[0].backward(losses, weights)

        def start_again() -> None:
            current[0] = renew()

        before_split = self.parts.premises.loss.on_split(window, loss_of)
        with window.during("pipe.run()"):
            current[0].retries = self.smaller.run(window, backward, start_again, before_split)
        window.backwards = len(window)

    def cached(self, window: Window[Any], encode: Encode, loss: LossOfAll, step: Step, sees: str) -> None:
        """Run all micro-batches in two passes. Collective."""
        check_can_cache(self.parts.plan, sees)

        def backward(scaled: Tensor | None, weights: Mapping[str, float]) -> None:
            self.parts.ownership.take_grads()
            window.take_weights()
            with window.during_backward():
                step.add_gradient(scaled, weights)

        names, premise, adapter = self.parts.plan.accumulate.losses, self.parts.premises.loss, self.parts.adapter
        look = partial(premise.on_encode, window, encode)
        cached = Cached(premise.model, adapter, names, step.loss.scaled, backward, look)
        with window.during("pipe.run_cached()"):
            cached.run(window, encode, loss, sees_all=sees == "all_ranks")
