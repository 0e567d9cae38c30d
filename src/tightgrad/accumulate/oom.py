"""Out of memory: the window is run again with smaller micro-batches, on all ranks. Its gradient is the same where the
loss is a weighted mean (or a sum) of per-sample terms, which is looked at before anything is split.

Ranks agree after their local backwards, where no collective is under way, so a rank that runs out of memory never
leaves the others waiting. What else a rank raises is raised at once: a loss may have a collective of its own, in which
the others would wait then.
"""

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tightgrad.accumulate.split import batch_size, split_batch
from tightgrad.accumulate.window import Window
from tightgrad.core.collective import NOTHING, largest_over_ranks, told
from tightgrad.core.errors import ConfigError, OutOfMemoryError, UsageError
from tightgrad.core.memory import is_out_of_memory
from tightgrad.core.protocols import Collective

Weights = Mapping[str, float]
Piece = tuple[Any, Weights]
BeforeSplit = Callable[[int, Callable[[Any], Weights]], None]


class SmallerMicroBatches:
    """Runs windows, cutting micro-batches into more pieces as memory demands.

    Args:
        collective: the data-parallel ranks.
        weigh: what a piece counts.

    Attributes:
        pieces: what each micro-batch is cut into; doubled at each retry, and kept for later windows.
    """

    def __init__(self, collective: Collective, weigh: Callable[[Any], dict[str, float]]) -> None:
        self.pieces = 1
        self._waiting: Window[Any] | None = None
        self._collective = collective
        self._weigh = weigh

    def run(
        self,
        window: Window[Any],
        backward: Callable[[Any, Weights], None],
        discard: Callable[[], None],
        before_split: BeforeSplit,
    ) -> int:
        """Call `backward(piece, weights)` for all pieces of all micro-batches; return the number of retries.

        Collective: every rank must call it.

        Args:
            window: not iterated.
            backward: of one piece.
            discard: forgets the gradients of an attempt.
            before_split: called before micro-batches are cut for the first time, with the number of pieces and what
                weighs one; collective.

        Raises:
            OutOfMemoryError: on every rank, when micro-batches of one sample are too large on any.
            ConfigError: on every rank, the pieces of a micro-batch on any do not weigh together what it weighs.
            Exception: what `backward` has raised here, at once; the other ranks wait until `fail` is called.
            UsageError: `fail` was called on another rank.
        """
        retries = 0
        while True:
            self._waiting = window
            pieces, refusal = self._cut_all(window)
            failed = _runs_out_of_memory(pieces, backward)
            hopeless = failed and self.pieces >= max(map(batch_size, window.batches), default=1)
            states = (failed, hopeless, refusal is not None, False)
            any_failed, any_hopeless, any_refused, any_raised = self._agree(*states)
            if any_raised:
                raise UsageError(
                    f"another rank has failed in this window ({told(NOTHING, self._collective)}), so no rank can step. "
                    "No weight was changed. Call pipe.abandon() on every rank to go on with the next window."
                )
            if any_refused:
                discard()
                try:
                    raise refusal or ConfigError(
                        "another rank's batches cannot be cut into pieces; see the error there."
                    )
                finally:
                    del refusal  # else its traceback and this frame hold each other, and the gradients
            if not any_failed:
                return retries
            discard()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if any_hopeless:
                raise OutOfMemoryError(
                    "a rank ran out of memory with micro-batches of one sample; shorten the samples, checkpoint "
                    "activations, or shard the model."
                )
            if self.pieces == 1:
                before_split(2, self._weigh)
            self.pieces *= 2
            retries += 1

    def fail(self, window: Window[Any], why: str) -> None:
        """Make it an error on ranks that wait for this one after their backwards. Collective: they are in `run`.

        Args:
            window: that this rank has left; nothing is done unless `run` has raised in it, and ranks wait.
            why: what they are told.
        """
        if self._waiting is window:
            self._agree(False, False, False, True)
            told(why, self._collective)

    def _agree(self, *states: bool) -> list[int]:
        """Return each state, set if it is on any rank: out of memory, hopeless, cannot be cut, has raised."""
        self._waiting = None
        return largest_over_ranks(states, self._collective)

    def _cut_all(self, window: Window[Any]) -> tuple[list[Piece], Exception | None]:
        """The pieces of a window and their weights; or none, and why it cannot be cut, which other ranks hear of."""
        try:
            rows = zip(window.batches, window.weights, strict=True)
            return [piece for batch, weights in rows for piece in self._cut(batch, weights)], None
        except Exception as error:  # also of the user's `weight`
            return [], error

    def _cut(self, batch: Any, weights: Weights) -> list[Piece]:
        if self.pieces == 1:
            return [(batch, weights)]
        cut: list[Piece] = [(piece, self._weigh(piece)) for piece in split_batch(batch, self.pieces)]
        for name, weight in weights.items():
            total = sum(row[name] for _, row in cut)
            if abs(total - weight) > 1e-9 * max(1.0, abs(weight)):
                raise ConfigError(
                    f"the {len(cut)} pieces of a batch weigh {total} together, the batch itself {weight}; out of "
                    "memory can be retried only if weight(batch) adds up over samples."
                )
        return cut


def _runs_out_of_memory(pieces: list[Piece], backward: Callable[[Any, Weights], None]) -> bool:
    try:
        for piece, weights in pieces:
            backward(piece, weights)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return True
    return False
