"""The outer step of local updates: count local steps, and every so often sum and apply the pseudo-gradient."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tightgrad.checkpoint.folder import load_on_every_rank, save_state
from tightgrad.checkpoint.save_folder import Newest
from tightgrad.checkpoint.state import PipelineState
from tightgrad.clip.norm import CachedNorm
from tightgrad.core.check import check_integer
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import ConfigError, StateMismatchError
from tightgrad.core.protocols import Collective, TrafficMeter
from tightgrad.core.types import Grads, Slot, State
from tightgrad.local.replica import ReplicaAdapter
from tightgrad.pipeline.delivery import Delivery, Outcome
from tightgrad.pipeline.premises.collaborators import check_model
from tightgrad.plan.local_updates import LocalUpdates
from tightgrad.plan.plan import Plan, Resolved
from tightgrad.records.step_record import StepRecord
from tightgrad.sync.after_backward import AfterBackward
from tightgrad.sync.complex_parameters import check_no_complex
from tightgrad.sync.compressed import residual_norm
from tightgrad.sync.handshake import check_ranks_agree
from tightgrad.sync.protocol import WindowFacts
from tightgrad.version import __version__

ANCHOR = Slot("anchor", across_ranks="equal", like_parameter=True)
_SINCE = "num_since"
VELOCITY = Slot("outer_velocity", across_ranks="equal", like_parameter=True)


class OuterPipeline:
    """Runs local updates on a module; made by `tightgrad.attach_local`.

    Every rank must call `step` equally often.

    Attributes:
        num_local_steps: all local steps of this rank.
        num_since: local steps since the last outer step.
    """

    def __init__(self, adapter: ReplicaAdapter, updates: LocalUpdates, plan: Resolved, *, seed: int) -> None:
        self.adapter = adapter
        self.updates = updates
        self.num_local_steps = 0
        self.num_since = 0
        self.state = PipelineState()
        self._plan = plan
        self._slots = {**plan.slots, ANCHOR.name: ANCHOR, VELOCITY.name: VELOCITY}
        self._clock = StageClock()
        self._sync = AfterBackward(adapter, plan, seed, self._clock)
        self._delivery = Delivery(adapter, plan, self.state, self._clock)
        self._sent = TrafficMeter(adapter.collective.traffic)

    def step(self) -> StepRecord | None:
        """Count one local step; after `every` of them, take an outer step. To be called after `optimizer.step()`.

        Collective: every rank must call it.

        Returns:
            The outer step's record, in which `micro_batches` are the local steps; None when there was none.

        Raises:
            NonFiniteGradientError: on every rank, if any rank's parameters are inf or NaN, where the plan's guard says
                so; nothing has changed. Under the policy "skip" all ranks go back to their last anchor instead.
            PayloadError: on every rank, when any could not decode what it received.
            RankMismatchError: on every rank, when they received different sums.
        """
        self.num_local_steps += 1
        self.num_since += 1
        return self.outer_step() if self.num_since >= self.updates.every else None

    @torch.no_grad()
    def outer_step(self) -> StepRecord:
        """Take an outer step now, also in mid-round: at the end of training, or before an evaluation.

        Collective: every rank must call it. Raises as `step` does.
        """
        with self._clock("accumulate"):
            moved = self.adapter.moved()
        norm = CachedNorm()
        self._sync.begin(WindowFacts(self.state.slots, self.state.step, factor=1.0))
        summed = self._sync.sum(moved, norm)
        if summed.finite:
            self._delivery.compare(summed.grads)
        admitted = self._delivery.admit(summed, norm)
        if admitted.skipped is not None:
            outcome = Outcome.of(summed, skipped=admitted.skipped)
        else:
            limited = self._delivery.clip(summed.grads, admitted.slots, norm)
            self._apply(summed.grads, limited.slots)
            outcome = Outcome.of(summed, limited.clipped)
        self.adapter.restart()
        since, self.num_since = self.num_since, 0
        return self._record(outcome, since)

    def meet(self) -> StepRecord:
        """Take an outer step now: the earlier name of `outer_step`."""
        return self.outer_step()

    def _apply(self, directions: Grads, slots: State) -> None:
        with self._clock("optimizer"):
            lr, momentum = self.updates.outer_lr, self.updates.outer_momentum
            before = self.state.slots.get(VELOCITY.name, {})
            velocity: dict[str, Tensor] = {}
            for name, anchor in self.adapter.parameters.items():
                direction = directions[name]
                if momentum:
                    held = (before[name] * momentum).add_(direction) if name in before else direction.clone()
                    velocity[name] = held
                    direction = direction.add(held, alpha=momentum)
                anchor.sub_(direction, alpha=lr)
            self.state.applied({**slots, VELOCITY.name: velocity} if momentum else slots)

    def _record(self, outcome: Outcome, local_steps: int) -> StepRecord:
        clipped = outcome.clipped
        return StepRecord(
            step=self.state.step - (outcome.skipped is None),
            skipped=outcome.skipped is not None,
            skip_reason=outcome.skipped,
            grad_norm=float(clipped.total_norm) if clipped else None,
            clip_coef=float(clipped.clip_coef) if clipped and self._plan.clip else None,
            wire_bytes=self._sent.pop(),
            residual_norm=residual_norm(self.state.slots, self._plan.slots),
            weight=float(self.adapter.collective.world_size),
            micro_batches=local_steps,
            stage_seconds=self._clock.pop(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything this rank remembers: plain tensors and numbers. Differs by rank.

        Model and inner optimizer are not included. They differ by rank too, so every rank must save its own.
        """
        state = self.state.state_dict(num_consumed=self.num_local_steps)
        anchors = {name: anchor.detach().clone() for name, anchor in self.adapter.parameters.items()}
        return {**state, "slots": {**state["slots"], ANCHOR.name: anchors}, _SINCE: self.num_since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Between rounds, the model continues from the anchors; in mid-round it is left
        as the caller has restored it.

        Raises:
            StateMismatchError: the state is of another version, or does not fit these settings and this model.
        """
        restored = self._checked(state)
        anchors = restored.slots[ANCHOR.name]
        with torch.no_grad():
            for name, anchor in self.adapter.parameters.items():
                anchor.copy_(anchors[name])
        restored.slots = {slot: values for slot, values in restored.slots.items() if slot != ANCHOR.name}
        self.state.step, self.state.consecutive_skips = restored.step, restored.consecutive_skips
        self.state.slots = restored.slots
        self.num_local_steps, self.num_since = int(state["num_consumed"]), int(state[_SINCE])
        if self.num_since == 0:
            self.adapter.to_anchors()

    def save(self, folder: str | Path) -> Path:
        """Write every rank's state below `folder`, which all ranks share. Collective: every rank must call it.

        Raises:
            CheckpointError: on every rank, if any could not write; the previous checkpoint stays valid.
        """
        return save_state(self.state_dict, Path(folder), self.adapter.collective)

    def load(self, folder: str | Path) -> int:
        """Restore the newest complete checkpoint below `folder`; return its number of local steps. Collective: every
        rank must call it.

        On another number of ranks than saved, which must have been between rounds, residuals are handed over so that
        their sum is preserved.

        Raises:
            CheckpointError: on every rank, if any rank's file is missing or damaged, or there is none; nothing changed.
            StateMismatchError: the same, where the state does not fit these settings and this model.
        """
        collective = self.adapter.collective

        def check(state: Mapping[str, Any], found: Newest) -> None:
            self._checked(state)
            if found.world_size != collective.world_size and state[_SINCE]:
                raise StateMismatchError(
                    f"{folder} was saved in mid-round by {found.world_size} ranks and cannot be taken up by "
                    f"{collective.world_size}, since each had moved away on its own; resume on {found.world_size}, "
                    "or save after outer_step()."
                )

        state = load_on_every_rank(Path(folder), self._slots, collective, check)
        self.load_state_dict(state)
        return self.num_local_steps

    def _checked(self, state: Mapping[str, Any]) -> PipelineState:
        restored = PipelineState()
        restored.load_state_dict(state, self.adapter.parameters, self._slots)
        if not isinstance(state.get(_SINCE), int) or not 0 <= state[_SINCE] <= state["num_consumed"]:
            raise StateMismatchError(
                f"{_SINCE} of the state is {state.get(_SINCE)!r}, not a number of local steps; was it saved by local "
                "updates?"
            )
        missing = set(self.adapter.parameters) - set(restored.slots.get(ANCHOR.name, {}))
        if missing:
            raise StateMismatchError(
                f"the state has no anchor of {', '.join(sorted(missing)[:5])}; was it saved by local updates, and of "
                "this model?"
            )
        return restored


def attach_local(
    model: nn.Module, updates: LocalUpdates, *, seed: int = 0, collective: Collective | None = None
) -> OuterPipeline:
    """Let each rank train `model` alone, with an outer step over all ranks every so many steps. Collective: every rank
    must call it.

    Args:
        model: a plain module, not in DistributedDataParallel or `fully_shard`; it starts from rank 0's weights.
        updates: `LocalSGD` or `DiLoCo`.
        seed: seed of all random numbers that methods draw.
        collective: the ranks; None takes the default process group, or one process without one.

    Raises:
        UnsupportedError: the model is in a wrapper.
        RankMismatchError: the ranks came with different settings, models, seeds or versions.

    Examples:
        >>> import torch, tightgrad as tg
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> outer = tg.attach_local(model, tg.DiLoCo(every=2))
        >>> records = []
        >>> for batch in [torch.ones(3, 4)] * 4:
        ...     model(batch).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     records.append(outer.step())
        >>> [record is not None for record in records]
        [False, True, False, True]
    """
    check_integer("seed", seed, low=0)
    check_model(model)
    given: object = updates
    if not isinstance(given, LocalUpdates):
        hint = "; write tg.DiLoCo(plan=plan)" if isinstance(given, Plan) else ""
        raise ConfigError(f"updates={given!r} must be LocalSGD(...) or DiLoCo(...){hint}.")
    adapter = ReplicaAdapter(model, collective)
    check_ranks_agree(updates, adapter.parameters, seed, adapter.collective, __version__)
    plan = updates.plan.resolved().for_optimizers(lambda: [list(adapter.parameters)])
    check_no_complex(plan.compress, adapter.parameters)
    adapter.start_together()
    return OuterPipeline(adapter, updates, plan, seed=seed)
