"""Looks at the losses of the first micro-batches, and says what is wrong with them for accumulation."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tightgrad.accumulate.loss_graph import divided_by, mixes_samples, normalises_batch
from tightgrad.accumulate.split import batch_size
from tightgrad.core.errors import ConfigError
from tightgrad.core.notices import warn

LOOKS = 2  # micro-batches that are looked at: a walk through a graph takes milliseconds
_STACK = 5  # the user's line, above backward() and what it calls


class LossLook:
    """Warns once of each kind of fault that a loss shows by its graph.

    Args:
        speaks: whether this rank warns.
        knows_batch_norm: whether the model's own BatchNorm layers have been told of.
    """

    def __init__(self, *, speaks: bool, knows_batch_norm: bool) -> None:
        self._looks = LOOKS if speaks else 0
        self._told: set[str] = {"batch_norm"} if knows_batch_norm else set()

    def saw(self, losses: Iterable[Tensor], batch: Any, weights: Iterable[float], count: int) -> None:
        """Take in one micro-batch.

        Args:
            losses: with their graphs.
            batch: that they are of.
            weights: of it.
            count: number of micro-batches of the window.
        """
        if not self._looks or count < 2 or not any(weights):
            return
        self._looks -= 1
        num_samples = _num_samples(batch)
        for loss in losses:
            self._look(loss, num_samples, [*weights], count)

    def _look(self, loss: Tensor, num_samples: int | None, weights: list[float], count: int) -> None:
        seen = mixes_samples(loss, num_samples) if num_samples is not None and num_samples > 1 else None
        if seen is not None:
            self._tell(
                "mixes",
                f"the samples of a micro-batch meet in its loss ({seen}), and there are fewer of them than in the "
                f"window's {count} micro-batches together: the accumulated gradient is not that of one big batch. For "
                "a contrastive loss pipe.run_cached(window, encode, loss) is exact (docs/contrastive.md); "
                "tg.check_loss(model, loss_of, batch) tells whether a loss is a mean over samples.",
            )
        if normalises_batch(loss):
            self._tell(
                "batch_norm",
                "batch_norm(training=True) normalises each micro-batch by its own mean and variance, so the "
                "accumulated gradient is not that of one big batch. Take group_norm or layer_norm, or statistics that "
                "are frozen (training=False).",
            )
        if divided_by(loss) == count and count not in (*weights, num_samples):
            self._tell(
                "divided",
                f"the loss was divided by {count}, and the window has {count} micro-batches. If a loop by hand needed "
                "that division, remove it: pipe.backward() divides by what the window weighs, and the gradient would "
                f"be {count} times too small.",
            )

    def _tell(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warn(message, _STACK)


def _num_samples(batch: Any) -> int | None:
    try:
        return batch_size(batch)
    except ConfigError:
        return None
