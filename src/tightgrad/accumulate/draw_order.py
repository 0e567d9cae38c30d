"""Notices a loader and a forward that draw from one generator while a window's batches are fetched first.

A loop by hand draws a batch, then the dropout masks of its forward, then the next batch. With the window fetched first
all its batches are drawn before its first mask: the distribution is the same, the numbers are not.
"""

from tightgrad.core.global_rng import GlobalRng
from tightgrad.core.notices import warn

LOOKS = 8  # windows that are looked at
_STACK = 9  # the user's line, above pipe.windows() and what it calls


class DrawOrder:
    """Compares global generators before, within and after the fetching of windows, and warns once.

    Args:
        speaks: whether this rank looks and warns.
    """

    def __init__(self, *, speaks: bool) -> None:
        self._looks = LOOKS if speaks else 0
        self._state: GlobalRng | None = None
        self._of_loader: frozenset[str] = frozenset()

    def begin(self) -> None:
        """Look before a window's first batch is fetched: what has been drawn since the window before, others drew."""
        if not self._looks:
            return
        both = self._of_loader & GlobalRng.now().changed_since(self._state) if self._state is not None else ()
        self._looks -= 1
        if both:
            self._looks = 0
            warn(
                f"the loader and the forward both draw from {' and '.join(sorted(both))}, and a window's batches are "
                "fetched before its first forward: they see other random numbers than in a loop by hand, of the same "
                "distribution. Accumulate(fetch=\"batch\") draws in the loop's order, a generator of the loader's own "
                'makes the order irrelevant, and fetch="window" leaves it as it is without this warning.',
                _STACK,
            )

    def add_batch(self, number: int) -> None:
        """Look after a batch was fetched; the first one, number 1, is drawn in the same place in a loop by hand."""
        if not self._looks:
            return
        before, self._state = self._state, GlobalRng.now()
        if number == 1 or before is None:
            self._of_loader = frozenset()
        else:
            self._of_loader |= self._state.changed_since(before)
