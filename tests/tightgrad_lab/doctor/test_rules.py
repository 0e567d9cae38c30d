"""Where each rule begins to speak, and that it is silent on a healthy run."""

import math
import random
import re
from typing import Any

import pytest

import tightgrad as tg
from tightgrad.reducers import PowerSGD
from tightgrad_lab.doctor import History, examine, notes
from tightgrad_lab.doctor.history import Failure
from tightgrad_lab.doctor.rules import RULES

Record = dict[str, Any]
EF = tg.ErrorFeedback()


def healthy(count: int = 200, **more: Any) -> list[Record]:
    """Noisy norms around 1 that fall with the root of the weight, one step in five clipped, memory that wobbles."""
    draw = random.Random(0)
    records = []
    for step in range(count):
        weight = 100 * (1 + step % 4)
        norm = draw.uniform(0.6, 1.2) * (100 / weight) ** 0.4
        records.append(
            {
                "step": step,
                "skipped": False,
                "skip_reason": None,
                "grad_norm": norm,
                "clip_coef": min(1.0, 1.0 / norm),
                "loss": 2.0 - step / 200,
                "weight": float(weight),
                "micro_batches": 4,
                "memory_bytes": int(4e8 + draw.uniform(-4e6, 4e6) + 3e7 * (step > 3)),
                "residual_norm": 3.0 * norm,
                "parameter_norm": 9.0 if step % 10 == 0 else None,
                **{key: value(step) if callable(value) else value for key, value in more.items()},
            }
        )
    return records


def named(records: list[Record], plan: tg.Plan | None = None, **more: Any) -> list[str]:
    return [finding.problem for finding in examine(History([records], plan, **more))]


CLIP = tg.Plan(clip=tg.clip.GlobalNorm(1.0))


def test_a_healthy_run_is_healthy() -> None:
    assert named(healthy(), CLIP) == []
    assert named(healthy(3)) == []
    assert named([{"step": step, "skipped": False} for step in range(300)]) == []


@pytest.mark.parametrize(("coef", "expected"), [(0.09, ["over_clipping"]), (0.2, []), (1.0, ["idle_clipping"])])
def test_clipping(coef: float, expected: list[str]) -> None:
    assert named(healthy(clip_coef=coef)) == expected


@pytest.mark.parametrize(
    ("coef", "text"),
    [
        (0.09, None),  # a problem, and no note beside it
        (0.5, r"^100% of 200 steps were clipped, to 0.5 of the gradient \(median; 0.5 to 0.5 from"),
        (0.99, "to 0.99 of the gradient"),
        (
            lambda step: 1.0 if step % 25 == 0 else 0.2 + 0.4 * (step % 2),
            "^96% .* to 0.6 of the gradient .*0.2 to 0.6 from",
        ),
        (lambda step: 1.0 if step % 10 == 0 else 0.5, None),
        (1.0, None),
        (None, None),
    ],
)
def test_a_clip_that_always_acts_a_little_is_a_note(coef: Any, text: str | None) -> None:
    history = History([healthy(clip_coef=coef)], CLIP)
    found = notes(history)
    assert len(found) == (text is not None)
    for note in found:
        assert examine(history) == []
        assert re.search(text or "", note.evidence)
        assert "tune the bound and the learning rate together" in note.cure
        assert note.plan is not None
        assert isinstance(note.plan.clip, tg.clip.GlobalNorm)
        assert 0.6 < note.plan.clip.max_norm < 1.3


def test_a_note_needs_enough_steps_and_may_lack_norms() -> None:
    assert notes(History([healthy(19, clip_coef=0.5)])) == []
    (note,) = notes(History([healthy(20, clip_coef=0.5, grad_norm=None)]))
    assert (note.problem, note.step, note.plan) == ("steady_clipping", 0, None)


def test_a_note_that_follows_from_a_problem_is_left_out() -> None:
    records = healthy(grad_norm=lambda step: 100.0 * (1 + step % 4), clip_coef=0.5)
    history = History([records], tg.Plan(accumulate=tg.Accumulate(2)))
    assert [finding.problem for finding in examine(history)] == ["wrong_denominator"]
    assert notes(history) == []


@pytest.mark.parametrize(("bound", "expected"), [(5.0, []), (50.0, ["idle_clipping"])])
def test_a_bound_that_is_near_is_insurance(bound: float, expected: list[str]) -> None:
    plan = tg.Plan(clip=tg.clip.GlobalNorm(bound))
    assert named(healthy(clip_coef=1.0), plan) == expected


def test_the_cure_of_clipping_is_the_usual_norm() -> None:
    plan = tg.Plan(accumulate=tg.Accumulate(4), clip=tg.clip.Value(1e-4))
    (finding,) = examine(History([healthy(clip_coef=0.01)], plan))
    assert finding.plan is not None
    assert finding.plan.accumulate == plan.accumulate
    assert isinstance(finding.plan.clip, tg.clip.GlobalNorm)
    assert 0.6 < finding.plan.clip.max_norm < 1.3
    assert finding.step == 0


@pytest.mark.parametrize(("coef", "expected"), [(None, ["exploding_norms"]), (0.01, [])])
def test_a_spike_that_was_clipped_is_no_problem(coef: float | None, expected: list[str]) -> None:
    records = healthy(clip_coef=None)
    records[80] |= {"grad_norm": 40.0, "clip_coef": coef}
    assert named(records) == expected
    if expected:
        (finding,) = examine(History([records]))
        assert finding.step == 80


def test_nonfinite_steps() -> None:
    records = healthy()
    records[5] |= {"skipped": True, "skip_reason": "nonfinite", "grad_norm": None, "clip_coef": None}
    assert named(records, CLIP) == ["exploding_norms"]
    scaled = [record | {"loss_scale": 1024.0} for record in records]
    assert named(scaled, CLIP) == []
    failure = Failure(200, "NonFiniteGradientError", "inf", out_of_memory=False)
    assert named(healthy(), CLIP, failure=failure) == ["exploding_norms"]


@pytest.mark.parametrize(("grows", "expected"), [(1e6, ["graph_kept_alive"]), (2e4, [])])
def test_memory(grows: float, expected: list[str]) -> None:
    assert named(healthy(memory_bytes=lambda step: int(4e8 + grows * step)), CLIP) == expected


def test_memory_that_settles_is_no_leak() -> None:
    assert named(healthy(memory_bytes=lambda step: int(4e8 + 1e6 * min(step, 90))), CLIP) == []


def test_out_of_memory() -> None:
    failure = Failure(3, "RuntimeError", "can't allocate memory\nmore", out_of_memory=True)
    (finding,) = examine(History([healthy(3)], tg.Plan(accumulate=tg.Accumulate(4)), failure))
    assert finding.plan is not None
    assert finding.plan.accumulate == tg.Accumulate(4, fetch="window", on_oom="split")
    assert finding.step == 3
    assert finding.evidence.endswith("can't allocate memory")
    (finding,) = examine(History([healthy(3)], None, failure))
    assert finding.plan is not None
    assert finding.plan.accumulate == tg.Accumulate(2, source="split", fetch="window", on_oom="split")
    for micro_batches in (1, 4):
        by_batch = tg.Plan(accumulate=tg.Accumulate(micro_batches, fetch="batch"))
        (finding,) = examine(History([healthy(3)], by_batch, failure))
        assert finding.plan is not None
        assert finding.plan.accumulate is not None
        assert finding.plan.accumulate.fetch == "window"
    assert named(healthy(retries=lambda step: int(step == 5)), CLIP) == []
    assert named(healthy(retries=lambda step: int(step % 50 == 5)), CLIP) == ["out_of_memory"]


def test_precision_without_feedback() -> None:
    lost = healthy(compression_cosine=lambda step: 0.3 if step % 10 == 0 else None)
    assert named(lost, tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.01)))) == ["precision_lost"]
    assert named(lost, tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.01), feedback=EF))) == []
    assert named(lost, tg.Plan(compress=tg.Compress(tg.codecs.QSGD()))) == []
    kept = healthy(compression_cosine=lambda step: 0.99 if step % 10 == 0 else None)
    assert named(kept, tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(8)))) == []


@pytest.mark.parametrize(
    ("compress", "cured"),
    [
        (tg.Compress(tg.codecs.TopK(0.001), feedback=EF), tg.Compress(tg.codecs.TopK(0.01), feedback=EF)),
        (tg.Compress(tg.codecs.IntBlock(2), feedback=EF), tg.Compress(tg.codecs.IntBlock(4), feedback=EF)),
        (tg.Compress(reducer=PowerSGD(1), feedback=EF), tg.Compress(reducer=PowerSGD(4), feedback=EF)),
        (tg.Compress(tg.codecs.Sign(), feedback=EF), tg.Compress()),
    ],
    ids=lambda value: repr(value.codec or value.reducer),
)
def test_a_residual_that_grows(compress: tg.Compress, cured: tg.Compress) -> None:
    records = healthy(residual_norm=lambda step: 0.5 * step, grad_norm=1.0)
    (finding,) = examine(History([records], tg.Plan(compress=compress)))
    assert finding.problem == "precision_lost"
    assert finding.plan == tg.Plan(compress=cured)
    level = healthy(residual_norm=lambda step: min(60.0, 2.0 * step), grad_norm=1.0)
    assert named(level, tg.Plan(compress=compress)) == []


def measured(overlap: float, cosine: float) -> list[Record]:
    return healthy(
        warm_start_overlap=lambda step: overlap if step % 10 == 0 and step else None,
        compression_cosine=lambda step: cosine if step % 10 == 0 else None,
    )


def test_stale_factors_must_also_miss_the_gradient() -> None:
    bare = tg.Plan(compress=tg.Compress(reducer=PowerSGD(2)))
    fed = tg.Plan(compress=tg.Compress(reducer=PowerSGD(2), feedback=EF))
    assert named(measured(0.3, 0.5), bare) == ["stale_warm_start"]
    assert named(measured(0.3, 0.95), bare) == []
    assert named(measured(0.3, 0.5), fed) == []
    (finding,) = examine(History([measured(0.1, 0.5)], fed))
    assert finding.plan == tg.Plan(compress=tg.Compress(reducer=PowerSGD(8), feedback=EF))
    (finding,) = examine(History([measured(0.3, 0.5)], bare))
    assert finding.plan == fed


@pytest.mark.parametrize("field", ["parameter_norm", "grad_norm", "weight"])
def test_drift_is_found_at_its_first_step(field: str) -> None:
    ours, theirs = healthy(), healthy()
    for record in theirs[70:]:
        if record[field] is not None:
            record[field] *= 1.001
    assert [finding.problem for finding in examine(History([ours, healthy(), theirs]))] == ["rank_drift"]
    (finding,) = examine(History([ours, healthy(), theirs]))
    assert (finding.step, "rank 2" in finding.evidence) == (70, True)


@pytest.mark.parametrize(
    ("power", "given", "cured"),
    [(1.0, "mean", "sum"), (-1.0, "sum", "mean"), (0.0, "mean", None), (-0.5, "mean", None)],
)
def test_denominators(power: float, given: str, cured: str | None) -> None:
    draw = random.Random(1)
    records = healthy(
        weight=lambda step: 100.0 * (1 + step % 4),
        grad_norm=lambda step: 0.1 * (100.0 * (1 + step % 4)) ** power * math.exp(draw.gauss(0, 0.2)),
        clip_coef=None,
    )
    plan = tg.Plan(accumulate=tg.Accumulate(2, loss_reduction=given))
    findings = examine(History([records], plan))
    if cured is None:
        assert findings == []
    else:
        assert [finding.problem for finding in findings] == ["wrong_denominator"]
        assert findings[0].plan == tg.Plan(accumulate=tg.Accumulate(2, loss_reduction=cured))


def test_partial_windows_divided_by_the_full_number() -> None:
    records = healthy(weight=None, micro_batches=lambda step: 1 if step % 8 == 7 else 4, clip_coef=None)
    for record in records:
        record["grad_norm"] = record["micro_batches"] / 4 * (1 + 0.01 * (record["step"] % 3))
    (finding,) = examine(History([records]))
    assert finding.problem == "wrong_denominator"
    assert finding.plan is None
    assert "micro-batches" in finding.evidence


def test_a_root_cause_hides_what_follows_from_it() -> None:
    records = healthy(grad_norm=lambda step: 100.0 * (1 + step % 4), clip_coef=0.003)
    assert named(records, tg.Plan(accumulate=tg.Accumulate(2))) == ["wrong_denominator"]


def test_rows_are_json_values() -> None:
    (finding,) = examine(History([healthy(clip_coef=0.01)], CLIP))
    row = finding.to_row()
    assert set(row) == {"problem", "evidence", "cure", "step", "plan"}
    assert tg.Plan.from_config(row["plan"]) == finding.plan
    assert len(RULES) == 10


def test_micro_batches_without_a_target_are_named() -> None:
    skipped = healthy(skip_reason=lambda step: "zero_weight" if step in (7, 9) else None)
    finding = next(one for one in examine(History([skipped])) if one.problem == "all_masked")
    assert finding.step == 7
    assert "2 of 200 windows had no target that counts" in finding.evidence
    undefined = healthy(loss=lambda step: math.nan if step == 5 else 2.0)
    other_rank = next(one for one in examine(History([healthy(), undefined])) if one.problem == "all_masked")
    assert other_rank.step == 5
