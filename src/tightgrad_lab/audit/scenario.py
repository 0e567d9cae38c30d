"""Under which circumstances a loop is run: each makes another kind of mistake visible."""

from dataclasses import dataclass

MICRO_BATCHES = 5
FULL_WINDOWS = 2
LEFT_OVER = 3
EPOCHS = 2
NEVER_CLIPS = 1e9
"""A bound that no gradient reaches, and that float32 holds a gradient scaled to."""
MAX_NORM_SHARE = 0.23
"""Of the true norm; no power of two, which a loss scale would be."""

Windows = list[list[int]]
"""The micro-batches of each optimizer step, by their place in the loader."""


@dataclass(frozen=True)
class Scenario:
    """One run of the user's loop.

    Args:
        ranks: W.
        micro_batches: K of a whole window.
        left_over: micro-batches of the last, shorter window of an epoch; 0 for none.
        ragged: whether the micro-batches' weights differ.
        max_norm_share: the bound over the first window's true norm; None if nothing is to be clipped.
        epochs: how often the loop goes over its micro-batches.
    """

    ranks: int
    micro_batches: int
    left_over: int
    ragged: bool
    max_norm_share: float | None = None
    epochs: int = 1

    @property
    def count(self) -> int:
        """Micro-batches on one rank."""
        return FULL_WINDOWS * self.micro_batches + self.left_over

    def windows(self, partial: str) -> Windows:
        """The micro-batches of each step, if the last ones of an epoch are "flush", "drop" or "carry"."""
        size = self.micro_batches
        if partial == "carry":
            everything = [place for _ in range(self.epochs) for place in range(self.count)]
            return [everything[start : start + size] for start in range(0, len(everything) - size + 1, size)]
        epoch = [list(range(start, min(start + size, self.count))) for start in range(0, self.count, size)]
        if partial == "drop" and self.left_over:
            epoch.pop()
        return epoch * self.epochs

    @property
    def tail(self) -> list[int]:
        """The micro-batches after the last full window of an epoch."""
        return list(range(self.count - self.left_over, self.count))

    @property
    def name(self) -> str:
        """In words."""
        parts = [f"{self.ranks} rank{'s' if self.ranks > 1 else ''}", "ragged" if self.ragged else "equal weights"]
        if self.left_over:
            parts.append(f"last window {self.left_over} of {self.micro_batches}")
        if self.epochs > 1:
            parts.append(f"{self.epochs} epochs")
        if self.max_norm_share is not None:
            parts.append("clipping active")
        return ", ".join(parts)


def scenarios(ranks: int, *, accumulates: bool, clips: bool, epochs: bool = False) -> list[Scenario]:
    """From the plainest to the most telling."""
    size = MICRO_BATCHES if accumulates else 1
    left = LEFT_OVER if accumulates else 0
    found = [Scenario(ranks, size, 0, False), Scenario(ranks, size, 0, True)]
    if left:
        found += [Scenario(ranks, size, left, False), Scenario(ranks, size, left, True)]
    if epochs:
        found += [Scenario(ranks, size, left, ragged, epochs=EPOCHS) for ragged in (False, True)]
    if clips:
        found.append(Scenario(ranks, size, 0, False, max_norm_share=MAX_NORM_SHARE))
        found.append(Scenario(ranks, size, 0, True, max_norm_share=MAX_NORM_SHARE))
    return found
