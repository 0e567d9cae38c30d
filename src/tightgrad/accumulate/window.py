"""A window: the micro-batches of one optimizer step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, Protocol, TypeVar

from tightgrad.accumulate.count import WindowLeftError
from tightgrad.core.errors import UsageError

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)
MicroBatchContext = Callable[[int, int], AbstractContextManager[None]]
_ALL_COUNT = (
    "Every batch of `for batch in window:` needs one pipe.backward(loss), because all weights are in N. To leave one "
    "out, call pipe.skip() in its place, or give it the weight 0 where the batch shows it, such as weight=lambda "
    "batch: len(batch) if is_good(batch) else 0, and call backward() all the same: nothing of its loss is added, not "
    "even NaN. A loss of 0 would keep its weight in N, and the gradient would be too small by that share."
)


class MicroBatches(Protocol[Batch_co]):
    """Knows a window's micro-batches on this rank, and what all ranks together have."""

    @property
    def weights(self) -> Sequence[Mapping[str, float]]:
        """Return what each micro-batch fetched so far counts for each loss."""

    @property
    def failure(self) -> Exception | None:
        """Return what this rank's loader raised in the middle of the window."""

    @property
    def is_counted(self) -> bool:
        """Tell whether `wait_for_total` gives the true N, and without waiting."""

    @property
    def written_on_some(self) -> bool:
        """Tell whether only some ranks had written to weights when the window was counted, which may wait."""

    def __len__(self) -> int:
        """Return how many there are, or will be."""

    def __getitem__(self, position: int, /) -> Batch_co:
        """Return a micro-batch that `reach` has found."""

    def __iter__(self) -> Iterator[Batch_co]:
        """Iterate over those that are there."""

    def reach(self, position: int) -> bool:
        """Tell whether there is such a micro-batch."""

    def wait_for_expected(self) -> dict[str, float]:
        """Return the N that losses are scaled by from the first backward on."""

    def wait_for_total(self) -> dict[str, float]:
        """Return N for each loss; the expected one as long as this rank has batches to fetch."""

    def close(self) -> None:
        """Count what there is, and wait for it. Collective: every rank must call it."""

    def settle(self) -> None:
        """Leave nothing under way."""


class Window(Generic[Batch]):
    """Gives one optimizer step's micro-batches on this rank: the user's own batches, to be iterated once.

    All of them need their backward, or `pipe.skip`, which leaves one out; so does the weight 0. A loss of 0, put in the
    place of one that is NaN, adds nothing but leaves the weight in N, so that one of four gives 0.75 times the gradient
    of the other three.

    Args:
        batches: this rank's micro-batches, by position; with `fetch="batch"`, the current one only. When this rank's
            loader ended before another's there are fewer, or none; under a wrapper that reduces by itself, the last
            batch is repeated with weight 0 instead.
        held: gives what is held around each, by its position and their number.

    Attributes:
        backwards: micro-batches whose backward has run.
    """

    def __init__(self, batches: MicroBatches[Batch], held: MicroBatchContext) -> None:
        self.batches = batches
        self.backwards = 0
        self._failed: str | None = None
        self._under_way: str | None = None
        self._position = -1
        self._held = held

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def weights(self) -> Sequence[Mapping[str, float]]:
        """Return for each micro-batch what it counts for each loss; with `fetch="batch"`, of those fetched so far."""
        return self.batches.weights

    def wait_for_total(self) -> dict[str, float]:
        """Return N for each loss: the weight of all micro-batches on all ranks. Waits for the other ranks once.

        With `fetch="batch"`, what is expected until the last micro-batch has been fetched.

        Raises:
            UsageError: another rank failed while fetching, so that there is no window, or has left it.
            Exception: with `fetch="batch"`, what this rank's own loader raised since the window began.
            CommunicationError: another rank cannot be reached.
        """
        return self.batches.wait_for_total()

    @property
    def total_weights(self) -> dict[str, float]:
        """Return N for each loss. The first look may wait for the other ranks, as `wait_for_total` does.

        Raises:
            UsageError: N is not known yet, since batches of this window are still to be fetched.
        """
        if len(self.weights) < len(self):
            raise UsageError(
                f"N is not known yet: {len(self.weights)} of the window's {len(self)} micro-batches have been fetched, "
                "one at a time. Look when the last one has come, at window.expected_weights for what losses are scaled "
                'by until then, or take Accumulate(fetch="window"), which fetches them all first.'
            )
        return dict(self.wait_for_total())

    @property
    def expected_weights(self) -> dict[str, float]:
        """Return the N that losses are scaled by from the first backward on. The first look may wait as well."""
        return dict(self.batches.wait_for_expected())

    @property
    def total_weight(self) -> float:
        """Return N of the first loss, as `total_weights` does."""
        return next(iter(self.total_weights.values()))

    def begun_everywhere(self) -> bool:
        """Wait for the other ranks; tell whether none failed before the first micro-batch."""
        try:
            return bool(self.batches.wait_for_expected())
        except Exception:
            return False

    def close(self) -> bool:
        """Leave the window; tell whether all ranks had it. Collective: every rank must call it."""
        self.batches.close()
        try:
            return bool(self.wait_for_total())
        except WindowLeftError:
            return True
        except Exception:
            return False

    @property
    def counts_for_nothing(self) -> bool:
        """Tell whether it is known, without waiting, that no micro-batch on any rank has any weight."""
        has_weight = any(any(row.values()) for row in self.weights)
        return not has_weight and self.batches.is_counted and not any(self.wait_for_total().values())

    def rewind(self) -> None:
        """Let the micro-batches be iterated again, at other weights: none has had its backward."""
        self._position, self.backwards = -1, 0

    def __iter__(self) -> Iterator[Batch]:
        if self._position >= 0:
            raise UsageError("a window can be iterated once; its micro-batches belong to one optimizer step.")
        position = self.backwards
        while self.batches.reach(position):
            self._position = position
            with self._held(position, len(self)):
                yield self.batches[position]
            position += 1

    @contextmanager
    def micro_batch(self, position: int) -> Iterator[Batch]:
        """Hold one micro-batch, around its forward and backward: what iterating does for each in turn.

        For loops that someone else runs; positions must be taken in order.
        """
        self.batches.reach(position)
        with self.turn(position):
            yield self.batches[position]

    @contextmanager
    def turn(self, position: int) -> Iterator[None]:
        """Hold one micro-batch that was reached, for those who have kept the batch themselves."""
        self._position = position
        with self._held(position, len(self)):
            yield

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Let the window have no state to save within, where it is neither complete nor as it was, nor, after an error,
        a step.
        """
        before, self._under_way = self._under_way, what
        try:
            yield
        except BaseException as error:
            self._failed = (
                f"{what} has raised {type(error).__name__}, and part of a gradient may be in the sum already, or part "
                "of a step in the weights: this window can neither be finished nor saved. Call pipe.abandon() to drop "
                "it before you save or go on with the next window; the batches fetched for it are then left out."
            )
            raise
        finally:
            self._under_way = before

    def during_backward(self) -> AbstractContextManager[None]:
        """Remember a backward that raises within."""
        return self.during(f"the backward of micro-batch {self._position} of {len(self)}")

    def check_can_be_saved(self) -> None:
        """Raise `UsageError` in the middle of a backward or a step, and after one that was cut short."""
        self._check_not_failed()
        if self._under_way is not None:
            raise UsageError(
                f"{self._under_way} is under way, so there is no state to save now: part of the window would be in it "
                "twice, or not at all. Let a hook, a scheduler, a signal handler or another thread set a flag, and "
                "save in the loop, after pipe.backward() or pipe.step(), if the flag is set."
            )

    def _check_not_failed(self) -> None:
        if self._failed is not None:
            raise UsageError(self._failed)

    def take_weights(self) -> Mapping[str, float]:
        """Return the current micro-batch's weights; to be called once for each, by `backward`.

        Raises:
            UsageError: no micro-batch is current, its backward ran before, or one of the window has raised.
        """
        self._check_not_failed()
        if self._position < 0:
            raise UsageError("backward() came before the window's first batch; call it inside `for batch in window:`.")
        if self.backwards > self._position:
            raise UsageError(
                f"backward() ran twice for micro-batch {self._position} of {len(self)}, or after its skip(). "
                "Add the losses of a batch, whether they share a graph or not (such as those of real and fake "
                "samples), and call it once. Pieces of a sequence that each have a backward (truncated backpropagation "
                "through time) are micro-batches: let the loader of pipe.windows() yield the pieces, and carry the "
                "detached state over in the loop. A batch that ran out of memory is cut by pipe.run(window, loss_of) "
                'under Accumulate(on_oom="split").'
            )
        if self.backwards < self._position:
            raise UsageError(
                f"backward() was not called for micro-batch {self.backwards} of {len(self)} before the next was taken. "
                "If the loop reads ahead (list(window), a prefetcher, losses collected first), let the loader given to "
                f"pipe.windows() prefetch, and call pipe.backward() for each batch before taking the next. {_ALL_COUNT}"
            )
        self.backwards += 1
        return self.weights[self._position]

    @property
    def is_complete(self) -> bool:
        """Tell whether backward ran for every micro-batch."""
        return self.backwards == len(self)

    @property
    def has_run(self) -> bool:
        """Tell whether the backward of every micro-batch has run to its end."""
        return self.is_complete and self._failed is None

    def check_complete(self) -> None:
        """Raise `UsageError` unless backward ran for every micro-batch, and none has raised."""
        self._check_not_failed()
        if not self.is_complete:
            raise UsageError(
                f"step() came after {self.backwards} of the window's {len(self)} micro-batches; loss.backward() does "
                f"not count, nor do gradients that the loop writes itself. {_ALL_COUNT} A window "
                "that should be shorter needs a smaller micro_batches, which can be a schedule; pipe.skip() leaves out "
                "each of the rest of this one, and pipe.abandon() drops one without a step."
            )
