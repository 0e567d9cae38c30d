"""Out of memory: the window is run again with smaller micro-batches, on all ranks. Its gradient is the same where the
loss is a weighted mean (or a sum) of per-sample terms, which is looked at before anything is split.

Ranks agree after their local backwards, where no collective is under way, so a rank that runs out of memory never
leaves the others waiting.
"""

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tightgrad.accumulate.split import batch_size, split_batch
from tightgrad.accumulate.window import Window
from tightgrad.core.collective import NOTHING, cause, told
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
            Exception: what `backward` has raised here, when the other ranks know.
            UsageError: it has raised on another rank.
        """
        retries = 0
        while True:
            pieces, refusal = self._cut_all(window)
            error = _error_of(pieces, backward)
            failed = error is not None and is_out_of_memory(error)
            hopeless = failed and self.pieces >= max(map(batch_size, window.batches), default=1)
            raised = error is not None and not failed
            states = [failed, hopeless, refusal is not None, raised]
            flags = torch.tensor(states, dtype=torch.int32, device="cpu").to(self._collective.control_device)
            any_failed, any_hopeless, any_refused, any_raised = self._collective.all_reduce_(flags, "max").tolist()
            if any_raised:
                text = told(cause(error) if raised else NOTHING, self._collective)
                if error is not None and raised:
                    raise error
                raise UsageError(
                    f"another rank has failed in this window ({text}), so no rank can step. No weight was changed. "
                    "Call pipe.abandon() on every rank to go on with the next window."
                )
            if any_refused:
                discard()
                raise refusal or ConfigError("another rank's batches cannot be cut into pieces; see the error there.")
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

    def _cut_all(self, window: Window[Any]) -> tuple[list[Piece], ConfigError | None]:
        """The pieces of a window and their weights; or none, and why it cannot be cut, which other ranks hear of."""
        try:
            rows = zip(window.batches, window.weights, strict=True)
            return [piece for batch, weights in rows for piece in self._cut(batch, weights)], None
        except ConfigError as error:
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


def _error_of(pieces: list[Piece], backward: Callable[[Any, Weights], None]) -> Exception | None:
    try:
        for piece, weights in pieces:
            backward(piece, weights)
    except Exception as error:
        return error
    return None
