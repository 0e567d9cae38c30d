"""Z8: the unit that a residual is kept in: gradients that are normalised, or unscaled, only after the reduce.

A parameter gets a known gradient at every step: the sum over N tokens, N between 10 and 1000, of a constant and noise.
What a run has delivered in all is compared with the sum of the mean gradients.
"""

import json

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from field.fragile import first_finished
from field.gradients import relative_error
from support.capture import Capture
from support.ranks import run_ranks

RANKS = 1  # the unit is wrong on one already
SHAPE = (48, 32)
STEPS = 200
GROWTH, GROWTH_INTERVAL = 4.0, 20
APPROXIMATION_RANK = 2
SECONDS = 25.0


class Free(nn.Module):
    """Its gradient is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SHAPE))

    def forward(self, gradient: Tensor) -> Tensor:
        return (self.weight * gradient).sum()


def token_sums() -> list[tuple[Tensor, int]]:
    """The gradient of the sum over a window's tokens, and their number."""
    generator = torch.Generator().manual_seed(1)
    constant = 0.05 * torch.randn(SHAPE, generator=generator)
    sums = []
    for _ in range(STEPS):
        tokens = int(10 ** (1 + 2 * torch.rand((), generator=generator)))
        mean = constant + torch.randn(SHAPE, generator=generator) / tokens**0.5
        sums.append((mean * tokens, tokens))
    return sums


def exact() -> Tensor:
    return sum(total.double() / tokens for total, tokens in token_sums())


def hooked() -> DistributedDataParallel:
    wrapped = DistributedDataParallel(Free())
    state = PowerSGDState(None, matrix_approximation_rank=APPROXIMATION_RANK, start_powerSGD_iter=2)
    wrapped.register_comm_hook(state, powerSGD_hook)
    return wrapped


def normalised_after_the_reduce() -> str:
    """The sum goes through the hook; the loop divides by the tokens of all ranks afterwards."""
    wrapped = hooked()
    delivered = torch.zeros(SHAPE, dtype=torch.float64)
    for total, tokens in token_sums():
        wrapped.zero_grad()
        wrapped(total).backward()
        delivered += wrapped.module.weight.grad / tokens
    return json.dumps([relative_error(delivered, exact())])


def unscaled_after_the_reduce() -> str:
    """As under GradScaler: the hook sees gradients times S, and S grows."""
    wrapped = hooked()
    delivered = torch.zeros(SHAPE, dtype=torch.float64)
    for step, (total, tokens) in enumerate(token_sums()):
        scale = 16.0 * GROWTH ** (step // GROWTH_INTERVAL)
        wrapped.zero_grad()
        (wrapped(total) / tokens * scale).backward()
        delivered += wrapped.module.weight.grad / scale
    return json.dumps([relative_error(delivered, exact())])


def with_tightgrad(*, scaled: bool) -> tuple[float, list[float]]:
    wrapped = DistributedDataParallel(Free())
    optimizer = Capture(wrapped.module.named_parameters())
    scale = tg.LossScale(16.0, growth=GROWTH, growth_interval=GROWTH_INTERVAL) if scaled else None
    plan = tg.Plan(
        tg.Accumulate(1, loss_reduction="sum"),
        tg.Compress(None, tg.reducers.PowerSGD(APPROXIMATION_RANK), tg.ErrorFeedback()),
        loss_scale=scale,
    )
    pipe = tg.attach(wrapped, optimizer, plan, weight=lambda batch: batch[1])
    scales = []
    for window in pipe.windows(token_sums()):
        for total, _ in window:
            pipe.backward(wrapped(total))
        scales.append(pipe.step().loss_scale)
    return relative_error(sum(step["weight"].double() for step in optimizer.steps), exact()), scales


def tightgrad_by_tokens():
    return with_tightgrad(scaled=False)


def tightgrad_loss_scaled():
    return with_tightgrad(scaled=True)


def compare(case, peer, error, field_row):
    result, tried = first_finished(RANKS, peer, seconds=SECONDS)
    field_row(
        case,
        "torch",
        f"cumulative error {result[0]:.3f}" if result else " / ".join(tried),
        f"{error:.3f}",
        peer_is_wrong=not result or result[0] > 2 * error,
    )


def test_z8_normalised_after_the_reduce(field_row):
    error, _ = run_ranks(RANKS, tightgrad_by_tokens)[0]
    assert error < 0.1
    compare("Z8 token sums through powerSGD_hook, divided after", normalised_after_the_reduce, error, field_row)


def test_z8_residual_in_loss_scaled_units(field_row):
    error, scales = run_ranks(RANKS, tightgrad_loss_scaled)[0]
    assert scales[-1] > 1e5 * scales[0], "the loss scale did not change"
    unscaled, _ = run_ranks(RANKS, tightgrad_by_tokens)[0]
    assert abs(error - unscaled) < 1e-3, "the loss scale shows in what is delivered"
    compare("Z8 powerSGD_hook under a growing loss scale", unscaled_after_the_reduce, error, field_row)
