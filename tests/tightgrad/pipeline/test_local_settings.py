"""What local updates can be set to, and JSON."""

from typing import Any

import pytest

import tightgrad as tg
from tightgrad.plan.local_updates import LocalUpdates, local_updates_from_json

COMPRESSED = tg.DiLoCo(
    every=3,
    lr=0.5,
    plan=tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(4)), clip=tg.clip.GlobalNorm(0.5)),
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tg.DiLoCo(every=0), "every=0 must be at least 1"),
        (lambda: tg.DiLoCo(lr=0.0), "lr=0 must be above 0"),
        (lambda: tg.DiLoCo(momentum=1.0), "momentum=1 must be below 1"),
        (lambda: tg.LocalSGD(plan=tg.Guard()), "must be a Plan"),
        (lambda: tg.LocalSGD(plan=tg.Plan(tg.Accumulate(2))), "no micro-batches"),
        (lambda: tg.LocalSGD(plan=tg.Plan(loss_scale=tg.LossScale())), "not scaled by a loss scale"),
        (
            lambda: tg.DiLoCo(
                plan=tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.1), feedback=tg.feedback.MomentumCorrection(0.9)))
            ),
            "momentum=0.0",
        ),
    ],
)
def test_settings_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(tg.ConfigError, match=message):
        make()


@pytest.mark.parametrize("updates", [tg.LocalSGD(7), COMPRESSED, tg.DiLoCo()], ids=repr)
def test_json_round_trip(updates: LocalUpdates) -> None:
    assert local_updates_from_json(updates.to_json()) == updates


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ("[]", "version 1"),
        ('{"version": 1, "id": "x"}', "local_sgd, diloco"),
        ('{"version": 1, "id": "diloco", "speed": 3}', "'speed'"),
    ],
)
def test_json_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(tg.ConfigError, match=message):
        local_updates_from_json(text)
