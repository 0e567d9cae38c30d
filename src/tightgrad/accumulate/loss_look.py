"""Looks at the losses of the first micro-batches, and says what is wrong with them for accumulation."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from tightgrad.accumulate.loss_graph import divided_by, mixes_samples, normalises_batch
from tightgrad.accumulate.split import batch_size
from tightgrad.accumulate.trial_forward import own_statistics
from tightgrad.core.errors import ConfigError
from tightgrad.core.notices import warn

LOOKS = 2  # micro-batches that are looked at: a walk through a graph takes milliseconds
_STACK = 6  # the user's line, above backward() and what it calls


class LossLook:
    """Warns once of each kind of fault that a loss shows by its graph.

    Args:
        model: whose own BatchNorm layers are told of elsewhere.
        speaks: whether this rank warns.
    """

    def __init__(self, model: nn.Module, *, speaks: bool) -> None:
        self._model = model
        self._looks = LOOKS if speaks else 0
        self._told: set[str] = set()

    @property
    def is_done(self) -> bool:
        """Tell whether it has looked enough."""
        return not self._looks

    @property
    def has_told(self) -> bool:
        """Tell whether something was wrong."""
        return bool(self._told)

    def add(self, losses: Iterable[Tensor], batch: Any, weights: Iterable[float], count: int) -> None:
        """Look at one micro-batch, if it is among the first.

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
        if normalises_batch(loss) and not own_statistics(self._model):
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
