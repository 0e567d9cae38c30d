"""The gradient noise scale, from what a window computes anyway: each micro-batch on each rank is a small batch.

A hook on every parameter sees a micro-batch's gradient before it is added to the others or reduced. No backward and no
gradient is computed for it, and one all-reduce of two numbers a window brings the ranks together.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from tightgrad.accumulate import Window
from tightgrad.core.protocols import Collective
from tightgrad.core.types import MODEL, State
from tightgrad.scaling.noise_scale import NOISE_SCALE, NoiseScale, estimate_noise, small_batch_mean


class NoiseMeter:
    """Measures one window: adds up the squared norms of its micro-batch gradients.

    Args:
        settings: of the running averages.
        collective: the data-parallel ranks.
    """

    def __init__(self, settings: NoiseScale, collective: Collective) -> None:
        self._settings = settings
        self._collective = collective
        self._square_sum: Tensor | float = 0.0
        self._count = 0

    @contextmanager
    def watching(self, leaves: Iterable[Tensor], weight: float) -> Iterator[None]:
        """Hold this around the backward of one micro-batch.

        Args:
            leaves: all trainable parameters, as autograd sees them.
            weight: what the micro-batch counts, above 0.
        """
        norms: list[Tensor] = []
        with ExitStack() as hooks:
            for leaf in leaves:
                hooks.enter_context(leaf.register_hook(lambda grad: norms.append(_norm(grad))))
            yield
        if norms:
            self._square_sum = self._square_sum + torch.stack(norms).double().square().sum() / weight
            self._count += 1

    def seen(self) -> tuple[float, int]:
        """Return what was added up so far, and of how many micro-batches. Waits for the device."""
        return float(self._square_sum), self._count

    def see_again(self, seen: tuple[float, int]) -> None:
        """Take up what `seen` gave."""
        self._square_sum, self._count = seen

    def learned(self, window: Window[object], total_norm: Tensor, factor: float, state: State) -> State:
        """Return the state with this window in it. Collective: every rank must call it.

        Args:
            window: all of whose micro-batches have been watched, or the window tells nothing.
            total_norm: of the delivered gradient before any clip.
            factor: what losses were multiplied by on top of weight over total weight.
            state: before the window.
        """
        watched = self._count == sum(1 for row in window.weights if next(iter(row.values())) > 0)
        mine = torch.tensor([float(self._square_sum), self._count, not watched], dtype=torch.float64, device="cpu")
        square_sum, count, unwatched = self._collective.all_reduce_(
            mine.to(self._collective.control_device), "sum"
        ).cpu()
        if bool(unwatched):
            return {}
        small = small_batch_mean(square_sum * (window.total_weight / factor) ** 2, window.total_weight, count)
        estimate = estimate_noise(*small, total_norm.double().square().cpu(), window.total_weight)
        before = self._settings.from_tensor(state[NOISE_SCALE.name][MODEL]) if NOISE_SCALE.name in state else None
        after = self._settings.updated(before or self._settings.initial(), estimate)
        return {NOISE_SCALE.name: {MODEL: self._settings.to_tensor(after)}}

    def value(self, state: State) -> float | None:
        """Return the noise scale, in the unit of the weights; None while it cannot be told."""
        if NOISE_SCALE.name not in state:
            return None
        value = float(self._settings.value(self._settings.from_tensor(state[NOISE_SCALE.name][MODEL].cpu())))
        return value if value == value else None  # NaN is not JSON


def _norm(grad: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(grad.detach(), dtype=torch.promote_types(grad.dtype, torch.float32))
    return norm
