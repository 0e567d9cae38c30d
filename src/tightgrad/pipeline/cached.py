"""The exact gradient of a loss that compares the samples of a whole window, over all ranks."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves  # torch 2.9 to 2.14: no public name yet

from tightgrad.accumulate import Window
from tightgrad.accumulate.additive import Forward, compare_with_halves
from tightgrad.accumulate.losses import checked_losses
from tightgrad.accumulate.representations import Encode, Encoded, cut, differs, encoded, joined, rebuilt, with_gradient
from tightgrad.accumulate.reuse import WaitingBatches
from tightgrad.accumulate.trial_forward import own_statistics
from tightgrad.adapters.parts.fsdp2_torch import is_fsdp2
from tightgrad.adapters.parts.trial import refuses_use_outside, through_wrapper, without_reduction
from tightgrad.adapters.plain import Adapter, unwrap_compiled
from tightgrad.collectives.gather_with_grad import gather_rows, has_all_rows, rows_of_all
from tightgrad.core.check import check_choice
from tightgrad.core.collective import largest_over_ranks, raise_on_every_rank
from tightgrad.core.errors import RankMismatchError, UnsupportedError, UsageError
from tightgrad.core.global_rng import GlobalRng
from tightgrad.core.protocols import Collective
from tightgrad.plan.plan import Resolved

Weights = Mapping[str, float]
LossOfAll = Callable[[Any], Tensor | Mapping[str, Tensor]]
SEES = ("all_ranks", "own_rank")


@dataclass(frozen=True)
class Cached:
    """Runs windows in two passes.

    Args:
        model: that encodes.
        adapter: of the model.
        losses: their names.
        scale: gives the loss by which gradients sum to the target, for losses and what they weigh.
        backward: runs the backward of a scaled loss, for the current micro-batch; its weight says whether it counts.
        check: called once all ranks have representations, before anything is done with them. Collective.
    """

    model: nn.Module
    adapter: Adapter
    losses: tuple[str, ...]
    scale: Callable[[Mapping[str, Tensor], Weights], Tensor | None]
    backward: Callable[[Tensor | None, Weights], None]
    check: Callable[[], None]

    def run(self, window: Window[Any], encode: Encode, loss: LossOfAll, *, sees_all: bool) -> None:
        """Add the gradients of all micro-batches. Collective: every rank must call it."""
        rank = self.adapter.collective.rank
        parts, abouts = self._first_pass(window, encode)
        self.check()
        weights: Weights = window.wait_for_total()
        if sees_all:
            counts = [about.num_rows for about in abouts]
            start, active = sum(counts[:rank]), sum(count > 0 for count in counts)
            rows = self._gathered(parts, abouts, counts)
            token = has_all_rows.set(self.adapter.collective.world_size > 1)
            try:
                grads, extra = self._gradients(parts, rows, loss, weights)
            finally:
                has_all_rows.reset(token)
            # Every rank has the gradient of the whole loss: of its own rows it takes all, of what is shared its part.
            own = slice(start, start + counts[rank])
            grads = [None if grad is None else grad[own] if grad.dim() else grad / active for grad in grads]
            extra = {name: grad / active for name, grad in extra.items()}
        else:
            weights = {name: sum(row[name] for row in window.weights) for name in weights}
            grads, extra = self._gradients(parts, joined(parts) if parts else [], loss, weights)
        after = GlobalRng.now()
        self._second_pass(window, encode, parts, grads, extra)
        after.restore()

    def _first_pass(self, window: Window[Any], encode: Encode) -> "tuple[list[Encoded], list[_About]]":
        """This rank's representations, and what all ranks' are."""
        parts: list[Encoded] = []
        error: Exception | None = None
        try:
            normalising = own_statistics(self.model)
            if normalising:
                raise UnsupportedError(
                    f"run_cached() needs representations that depend on one sample each, and {normalising[0]!r} "
                    f"({len(normalising)} such layers) normalises by the statistics of a micro-batch. Take GroupNorm "
                    "or LayerNorm, or freeze the statistics by calling .eval() on these layers."
                )
            waiting = WaitingBatches()
            with without_reduction(self.model):
                while window.batches.reach(len(parts)):
                    batch, counts = window.batches[len(parts)], any(window.weights[len(parts)].values())
                    waiting.fetched(batch)
                    with nullcontext() if parts else through_wrapper(self.model):
                        parts.append(encoded(batch, encode, counts=counts))
            _check_not_reused(waiting)
            if parts:
                joined(parts)
        except Exception as raised:
            error = raised
        torch.clear_autocast_cache()  # casts of weights made without a graph, where autocast is around both passes
        raise_on_every_rank(error, _failed, self.adapter.collective)
        return parts, _About.of(parts).of_all_ranks(self.adapter.collective)

    def _gathered(self, parts: list[Encoded], abouts: "list[_About]", counts: list[int]) -> list[Tensor]:
        """All ranks' rows."""
        example = next(about for about in abouts if about.leaves)
        device = parts[0].leaves[0].device if parts else self.adapter.collective.control_device
        mine = joined(parts) if parts else [leaf.empty(device) for leaf in example.leaves]
        return [
            rows_of_all(leaf, counts, self.adapter.collective) if about.shape is not None else leaf
            for leaf, about in zip(mine, example.leaves, strict=True)
        ]

    def _gradients(
        self,
        parts: list[Encoded],
        rows: list[Tensor],
        loss: LossOfAll,
        weights: Weights,
    ) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """Those of the scaled loss with respect to the rows, and to parameters that the loss itself uses."""
        leaves = [leaf.detach().requires_grad_(leaf.is_floating_point() or leaf.is_complex()) for leaf in rows]
        found: list[Tensor | None] = [None] * len(leaves)
        extra: dict[str, Tensor] = {}
        error: Exception | None = None
        try:
            if parts and any(len(leaf) for leaf in leaves if leaf.dim()):
                with torch.enable_grad():
                    losses = checked_losses(loss(rebuilt(leaves, parts[0])), self.losses)
                    scaled = self.scale(losses, weights)
                if scaled is not None:
                    found, extra = self._differentiated(scaled, leaves)
        except Exception as raised:
            error = raised
            is_sharded = is_fsdp2(unwrap_compiled(self.model))
            if is_sharded and any(word in str(raised).lower() for word in ("dtensor", "shard")):
                error = self._used_outside(str(raised).splitlines()[0])
        raise_on_every_rank(error, _failed, self.adapter.collective)
        return found, extra

    def _differentiated(self, scaled: Tensor, leaves: list[Tensor]) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        own = dict(self.adapter.parameters)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        inputs = [*wanted, *own.values()]
        grads: Iterator[Tensor | None] = iter(torch.autograd.grad(scaled, inputs, allow_unused=True))
        found = [next(grads) if leaf.requires_grad else None for leaf in leaves]
        extra = {name: grad for name, grad in zip(own, grads, strict=True) if grad is not None}
        reason = refuses_use_outside(self.model) if self.adapter.every_rank_runs else None
        if extra and reason is not None:
            raise self._used_outside(f"{next(iter(extra))!r}: {reason}")
        return found, extra

    @staticmethod
    def _used_outside(reason: str) -> UnsupportedError:
        return UnsupportedError(
            f"the loss uses a parameter of the model, which cannot be had here ({reason}). Return it from encode() as "
            "a scalar beside the representations, out of the model's own forward: self.logit_scale.squeeze().exp()."
        )

    def _second_pass(
        self,
        window: Window[Any],
        encode: Encode,
        parts: list[Encoded],
        grads: Sequence[Tensor | None],
        extra: Mapping[str, Tensor],
    ) -> None:
        changed: list[Tensor] = []
        error: Exception | None = None
        try:
            self._add_gradients(window, encode, parts, grads, extra, changed)
        except Exception as raised:
            if self.adapter.every_rank_runs:  # the others wait in their backward, and not for what follows
                raise
            error = raised
        self._check_same(parts, changed, error)

    def _add_gradients(
        self,
        window: Window[Any],
        encode: Encode,
        parts: list[Encoded],
        grads: Sequence[Tensor | None],
        extra: Mapping[str, Tensor],
        changed: list[Tensor],
    ) -> None:
        last = max((index for index, part in enumerate(parts) if part.num_rows), default=-1)
        own = [self.adapter.parameters[name] for name in extra]
        for position, (part, wanted) in enumerate(zip(parts, cut(grads, parts), strict=True)):
            with window.turn(position):
                part.before.restore()
                leaves = tree_leaves(encode(part.batch))
                changed.append(differs(part.leaves, leaves))
                shares = [grad if position == last else torch.zeros_like(grad) for grad in extra.values()]
                scaled = with_gradient([*leaves, *own], [*wanted, *shares])
                if not any(leaf.requires_grad for leaf in leaves) and part.num_rows:
                    raise UsageError(
                        "no representation depends on a trainable parameter. Was it detached, computed under "
                        "torch.no_grad(), or is everything that it needs frozen?"
                    )
                del leaves
                self.backward(scaled, {"rows": float(part.num_rows)})

    def _check_same(self, parts: Sequence[Encoded], changed: Sequence[Tensor], error: Exception | None) -> None:
        """Raise on every rank if the gradients of some belong to other representations than the second pass had.

        Collective: every rank must call it.
        """
        scalars = [[leaf for leaf in part.leaves if not leaf.dim()] for part in parts]
        another = [differs(scalars[0], other) for other in scalars[1:]] if scalars and scalars[0] else []
        raise_on_every_rank(
            error,
            lambda rank: UsageError(
                f"the second pass of run_cached() failed on another rank ({rank}), which says why; this window has no "
                "step. Call pipe.abandon() to go on with the next one."
            ),
            self.adapter.collective,
        )
        flags = [any(bool(flag) for flag in found) for found in (changed, another)]
        is_changed, is_another = largest_over_ranks(flags, self.adapter.collective)
        if is_another:
            raise UsageError(
                "encode() returned a scalar that is not the same for all micro-batches. Only what they share may be a "
                "scalar, such as a temperature; a term of the loss that each micro-batch has for itself cannot be "
                "accumulated here. This window has no step; call pipe.abandon() to go on."
            )
        if is_changed:
            raise UsageError(
                "the second forward of a micro-batch gave other representations than the first, so that the gradient "
                "would be wrong. Random numbers of torch, NumPy and Python were the same: usual causes are a generator "
                "of your own in encode(), and buffers that each forward changes (spectral_norm: call .eval() on it). "
                "This window has no step; call pipe.abandon() to go on."
            )


def _failed(rank: int) -> UsageError:
    return UsageError(
        f"run_cached() failed on rank {rank}, which says why; this window has no step. Call pipe.abandon() to go on "
        "with the next one."
    )


def _check_not_reused(waiting: WaitingBatches) -> None:
    try:
        waiting.check()
    except UsageError as error:
        raise UsageError(
            "run_cached() uses every micro-batch of a window twice, and the loader has written one into the memory of "
            "another before the second time. Let the loader yield copies (clone())."
        ) from error


def check_can_cache(plan: Resolved, sees: object) -> None:
    """Raise `UnsupportedError` where a plan cannot be run in two passes."""
    check_choice("sees", sees, SEES)
    accumulate = plan.accumulate
    if accumulate.on_oom == "split":
        raise UnsupportedError(
            'run_cached() does not run a window again with smaller micro-batches; take on_oom="raise", and more and '
            "smaller micro-batches: the gradient is the same for any number of them."
        )
    if plan.noise_scale is not None:
        raise UnsupportedError(
            "noise_scale compares the gradients of micro-batches, which run_cached() has none of; leave it out."
        )


def check_encodes_alone(window: Window[Any], encode: Encode, model: nn.Module, collective: Collective) -> None:
    """Look whether the representation of a sample depends on the other samples of its micro-batch. Collective: every
    rank must call it.

    A number that depends on each entry of a representation is summed over samples, for a micro-batch and its halves.

    Raises:
        UnsupportedError: on every rank, if it does on any.
    """

    def mixed(batch: Any) -> dict[str, Tensor]:
        leaves = [leaf for leaf in tree_leaves(encode(batch)) if leaf.dim() and leaf.is_floating_point()]
        return {"representations": torch.stack([_mixed(leaf) for leaf in leaves]).sum()}

    forward = Forward(mixed, lambda batch: {"representations": 1.0}, model, is_mean=False)
    with torch.no_grad(), without_reduction(model):
        is_sharded = is_fsdp2(unwrap_compiled(model))
        found = compare_with_halves([*window.batches][:1], forward, collective, in_step=is_sharded)
    torch.clear_autocast_cache()
    if found.kind == "differs":
        raise UnsupportedError(
            "run_cached() needs representations that depend on one sample each, and those of a micro-batch are not "
            f"those of its halves ({found.message}). Batch statistics inside of encode(), such as centering, belong "
            "into the loss, which is given the samples of all micro-batches."
        )


def _mixed(leaf: Tensor) -> Tensor:
    rows = leaf.detach().flatten(1).double() if leaf.dim() > 1 else leaf.detach()[:, None].double()
    norms = torch.linalg.vector_norm(rows, dim=1)
    direction = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device).sin()
    numbers: Tensor = torch.sin(rows @ direction / norms.clamp(min=1e-30)) + 2.0 + norms.log1p()
    return numbers.sum().cpu()


@dataclass(frozen=True)
class _Leaf:
    """What a representation is: the shape of a row, None for a shared scalar."""

    shape: tuple[int, ...] | None
    dtype: str

    def empty(self, device: torch.device) -> Tensor:
        shape = () if self.shape is None else (0, *self.shape)
        return torch.zeros(shape, dtype=getattr(torch, self.dtype), device=device)


@dataclass(frozen=True)
class _About:
    num_rows: int
    leaves: list[_Leaf]

    @classmethod
    def of(cls, parts: Sequence[Encoded]) -> "_About":
        leaves = parts[0].leaves if parts else []
        about = [_Leaf(tuple(t.shape[1:]) if t.dim() else None, str(t.dtype).removeprefix("torch.")) for t in leaves]
        return cls(sum(part.num_rows for part in parts), about)

    def of_all_ranks(self, collective: Collective) -> "list[_About]":
        """What every rank has. Collective.

        Raises:
            RankMismatchError: the ranks' representations are of different kinds.
        """
        text = json.dumps([self.num_rows, [[leaf.shape, leaf.dtype] for leaf in self.leaves]])
        message = torch.tensor(list(text.encode()), dtype=torch.uint8, device=collective.control_device)
        everyones, counts = gather_rows(message, collective)
        abouts = []
        for part in everyones.cpu().split(counts):
            num_rows, leaves = json.loads(bytes(part.tolist()))
            abouts.append(_About(num_rows, [_Leaf(None if s is None else tuple(s), dtype) for s, dtype in leaves]))
        kinds = {tuple(about.leaves) for about in abouts if about.leaves}
        if len(kinds) > 1:
            raise RankMismatchError(
                "encode() returned representations of different kinds on different ranks: "
                f"{' and '.join(map(str, kinds))}."
            )
        return abouts
