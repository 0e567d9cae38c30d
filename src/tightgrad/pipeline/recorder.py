"""Makes each step's record, and hands it to the writers."""

from collections.abc import Callable, Sequence

import torch

from tightgrad.clip.norm import exact_norm
from tightgrad.core.memory import used_nbytes
from tightgrad.core.protocols import TrafficMeter
from tightgrad.pipeline.delivery import Outcome
from tightgrad.pipeline.meters.clip_rate import ClipRate
from tightgrad.pipeline.meters.compression_quality import MEASURED_STEPS
from tightgrad.pipeline.parts import Parts
from tightgrad.pipeline.step import Step
from tightgrad.plan.plan import Plan
from tightgrad.records import RecordWriter
from tightgrad.records.step_record import StepRecord
from tightgrad.sync.compressed import residual_norm


class Recorder:
    """Knows what there is to measure about a step.

    Args:
        parts: of the pipeline.
        plan: as it is written to the records.
        writers: of the records.
    """

    def __init__(self, parts: Parts, plan: Plan, writers: Sequence[RecordWriter]) -> None:
        self._parts, self._plan = parts, parts.plan
        self._writers = tuple(writers)
        collective = parts.adapter.collective
        self.clip_rate = ClipRate(speaks=collective.rank == 0)
        self.sent = TrafficMeter(collective.traffic)
        parameter = next(iter(parts.adapter.parameters.values()), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        for writer in self._writers:
            writer.start(collective.rank, collective.world_size, plan.to_config())

    def begin(self, count: Callable[[], int]) -> None:
        """Tell the writers how many windows a loader makes, where `count` knows and they want to."""
        try:
            windows: int | None = count()
        except TypeError:
            windows = None
        for writer in self._writers:
            if hasattr(writer, "begin"):  # a writer of its own class need not have it
                writer.begin(windows)

    def record(self, step: Step, outcome: Outcome) -> StepRecord:
        """Make and write the record of a step, and raise what came after it. Collective when parameters are sharded:
        every rank must call it.
        """
        parts, plan, clipped, slots = self._parts, self._plan, outcome.clipped, self._parts.state.slots
        groups = clipped.groups if clipped else {}
        parts.adapter.collective.traffic.add("wrapper", parts.adapter.sent_nbytes())
        wire_bytes = self.sent.pop()
        clip_coef = float(clipped.clip_coef) if clipped and plan.clip else None
        if clip_coef is not None:
            self.clip_rate.add(clip_coef)
        number = parts.state.step - (outcome.skipped is None)
        record = StepRecord(
            step=number,
            skipped=outcome.skipped is not None,
            skip_reason=outcome.skipped,
            grad_norm=float(clipped.total_norm) if clipped else None,
            clip_coef=clip_coef,
            group_norms={name: float(group.total_norm) for name, group in groups.items()},
            group_clip_coefs={name: float(group.clip_coef) for name, group in groups.items()},
            wire_bytes=None if plan.is_empty else wire_bytes,
            residual_norm=residual_norm(slots, plan.slots),
            weight=step.window.total_weight if step.total_weight is None else step.total_weight,
            micro_batches=len(step.window),
            loss_scale=step.loss.loss_scale,
            retries=step.retries,
            stage_seconds=parts.clock.pop(),
            clip_rate=self.clip_rate.rate,
            relative_error=outcome.relative_error,
            fell_back=outcome.fell_back,
            loss=step.loss.meter.pop(),
            noise_scale=step.noise.value(slots) if step.noise else None,
            memory_bytes=used_nbytes(self._device),
            compression_cosine=step.quality.cosine,
            warm_start_overlap=step.quality.overlap,
            parameter_norm=self._parameter_norm() if number % MEASURED_STEPS == 0 and not plan.is_empty else None,
        )
        for writer in self._writers:
            writer.write(record.to_dict())
        if outcome.raised is not None:
            raise outcome.raised
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
        return float(exact_norm([parameter.detach() for parameter in self._parts.adapter.parameters.values()]))
