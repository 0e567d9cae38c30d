"""Makes each step's record, and hands it to the writers."""

from collections.abc import Sequence
from typing import Any

import torch

from tightgrad.accumulate import Window
from tightgrad.checkpoint.state import PipelineState
from tightgrad.clip.norm import exact_norm
from tightgrad.core.clock import StageClock
from tightgrad.core.memory import used_nbytes
from tightgrad.core.protocols import Adapter, TrafficMeter
from tightgrad.core.types import Clipped
from tightgrad.pipeline.clip_rate import ClipWatch
from tightgrad.pipeline.compression_quality import MEASURED_STEPS
from tightgrad.pipeline.path import NOTHING_CLIPPED, GradientPath, SkipReason
from tightgrad.plan.plan import Plan
from tightgrad.records import RecordWriter
from tightgrad.records.step_record import StepRecord
from tightgrad.sync.compressed import residual_norm


class Recorder:
    """Knows what there is to measure about a step.

    Args:
        adapter: of the model.
        plan: that is run.
        path: that gradients are walked down.
        clock: of the stages.
        writers: of the records.
    """

    def __init__(
        self, adapter: Adapter, plan: Plan, path: GradientPath, clock: StageClock, writers: Sequence[RecordWriter]
    ) -> None:
        self._adapter, self._plan, self._path, self._clock = adapter, plan, path, clock
        self._writers = tuple(writers)
        self._clip_watch = ClipWatch(speaks=adapter.collective.rank == 0)
        self._sent = TrafficMeter(adapter.collective.traffic)
        parameter = next(iter(adapter.parameters.values()), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        for writer in self._writers:
            writer.start(adapter.collective.rank, adapter.collective.world_size, plan.to_config())

    def record(
        self,
        window: Window[Any],
        outcome: Clipped | SkipReason,
        state: PipelineState,
        *,
        loss: float | None = None,
        loss_scale: float | None = None,
        retries: int = 0,
        noise_scale: float | None = None,
    ) -> StepRecord:
        """What the step did. Collective when parameters are sharded: every rank must call it."""
        clipped = outcome if isinstance(outcome, Clipped) else None
        measured = clipped if clipped is not NOTHING_CLIPPED else None
        self._adapter.collective.traffic.add("wrapper", self._adapter.sent_nbytes())
        wire_bytes = self._sent.take()
        clip_coef = float(measured.clip_coef) if measured and self._plan.clip else None
        if clip_coef is not None:
            self._clip_watch.saw(clip_coef)
        step = state.step - 1 if clipped else state.step
        record = StepRecord(
            step=step,
            skipped=clipped is None,
            skip_reason=outcome if isinstance(outcome, str) else None,
            grad_norm=float(measured.total_norm) if measured else None,
            clip_coef=clip_coef,
            wire_bytes=None if self._plan.is_empty else wire_bytes,
            residual_norm=residual_norm(state.slots, self._plan.slots),
            weight=window.total_weight,
            micro_batches=len(window),
            loss_scale=loss_scale,
            retries=retries,
            stage_seconds=self._clock.take(),
            clip_rate=self._clip_watch.rate,
            relative_error=self._path.relative_error,
            fell_back=self._path.fell_back,
            loss=loss,
            noise_scale=noise_scale,
            memory_bytes=used_nbytes(self._device),
            compression_cosine=self._path.fidelity.take_cosine(),
            warm_start_overlap=self._path.fidelity.take_overlap(),
            parameter_norm=self._parameter_norm() if step % MEASURED_STEPS == 0 and not self._plan.is_empty else None,
        )
        for writer in self._writers:
            writer.write(record.to_dict())
        return record

    def failed(self, error: Exception) -> None:
        """Tell the writers what ended a step."""
        for writer in self._writers:
            writer.failed(error)

    def close(self) -> None:
        """Close the writers of records."""
        for writer in self._writers:
            writer.close()

    @torch.no_grad()
    def _parameter_norm(self) -> float:
        return float(exact_norm([parameter.detach() for parameter in self._adapter.parameters.values()]))
