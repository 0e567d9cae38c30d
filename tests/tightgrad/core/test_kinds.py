"""A setting of the wrong kind is one error that says what to write, and what it says can be written."""

import numpy as np
import pytest
import torch

import tightgrad as tg
from tightgrad.core.kinds import spelling, written

TOPK = tg.codecs.TopK

WRITES = [
    (lambda: tg.Plan(accumulate=4), "Plan(accumulate=tg.Accumulate(micro_batches=4))"),
    (lambda: tg.Plan(accumulate=((0, 1), (9, 4))), "Plan(accumulate=tg.Accumulate(micro_batches=((0, 1), (9, 4))))"),
    (lambda: tg.Plan(accumulate=True), "Plan(accumulate=tg.Accumulate(micro_batches=4))"),
    (lambda: tg.Plan(accumulate={"micro_batches": 4}), "Plan(accumulate=tg.Accumulate(micro_batches=4))"),
    (lambda: tg.Plan(clip=0.5), "Plan(clip=tg.clip.GlobalNorm(max_norm=0.5))"),
    (lambda: tg.Plan(clip="0.5"), "Plan(clip=tg.clip.GlobalNorm(max_norm=1.0))"),
    (lambda: tg.Plan(tg.clip.Value(2.0)), "Plan(clip=tg.clip.Value(max_value=2.0))"),
    (lambda: tg.Plan(compress=TOPK(0.1)), "Plan(compress=tg.Compress(codec=tg.codecs.TopK(density=0.1)))"),
    (lambda: tg.Plan(clip=TOPK(0.1)), "Plan(compress=tg.Compress(codec=tg.codecs.TopK(density=0.1)))"),
    (lambda: tg.Plan(clip=tg.Guard("skip")), "Plan(guard=tg.Guard(on_nonfinite='skip'))"),
    (lambda: tg.Plan(guard="skip"), "Plan(guard=tg.Guard(on_nonfinite='skip'))"),
    (lambda: tg.Plan(guard=True), "Plan(guard=tg.Guard())"),
    (lambda: tg.Plan(loss_scale=1024.0), "Plan(loss_scale=tg.LossScale(initial=1024.0))"),
    (lambda: tg.Plan(loss_scale=tg.scaling.NoiseScale()), "Plan(noise_scale=tg.scaling.NoiseScale())"),
    (lambda: tg.Compress(0.01), "Compress(codec=tg.codecs.TopK(density=0.01))"),
    (lambda: tg.Compress(feedback=True), "Compress(codec=tg.codecs.TopK(density=0.01), feedback=tg.ErrorFeedback())"),
]


@pytest.mark.parametrize(("make", "text"), WRITES)
def test_what_the_error_says_can_be_written(make, text):
    with pytest.raises(tg.ConfigError) as error:
        make()
    said = str(error.value).rpartition("; write ")[2].removesuffix(".")
    assert said == text
    eval(f"tg.{said}", {"tg": tg})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tg.Plan(compress="topk"), "write Plan(compress=tg.Compress(codec=tg.codecs.TopK(...)))"),
        (lambda: tg.Plan(compress=TOPK), "write Plan(compress=tg.Compress(codec=tg.codecs.TopK(...)))"),
        (lambda: tg.Plan(clip="value"), "write Plan(clip=tg.clip.Value(...))"),
        (lambda: tg.Compress("topk"), "write Compress(codec=tg.codecs.TopK(...))"),
        (lambda: tg.Compress(TOPK(0.1), tg.feedback.EF21()), "write Compress(feedback=tg.feedback.EF21())"),
        (lambda: tg.Compress(TOPK(0.1), "gather"), "write Compress(reducer=tg.reducers.Gather(...))"),
        (lambda: tg.Compress(TOPK(0.1), feedback="error_feedback"), "feedback=tg.ErrorFeedback(...)"),
        (lambda: tg.Plan(accumulate=tg.Accumulate), "write Accumulate(...), as in Plan(accumulate=tg.Accumulate(...))"),
    ],
)
def test_a_method_given_by_its_id_or_its_class(make, words):
    with pytest.raises(tg.ConfigError) as error:
        make()
    assert words in str(error.value)


def test_grammar_and_what_is_right_passes():
    with pytest.raises(tg.ConfigError, match="must be an Accumulate or None"):
        tg.Plan(accumulate=3.5)
    with pytest.raises(tg.ConfigError, match="must be a Compress or None"):
        tg.Plan(compress=3.5)
    assert tg.Plan(accumulate=tg.Accumulate(2), clip=tg.clip.Value(1.0)).clip == tg.clip.Value(1.0)


def test_names_are_those_that_a_user_can_write():
    for value in (tg.clip.GlobalNorm(2.0), TOPK(0.1), tg.Guard("skip"), tg.scaling.NoiseScale(), tg.feedback.EF21()):
        assert eval(written(value), {"tg": tg}) == value
    assert spelling(type("Mine", (), {})) == "Mine"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tg.Accumulate(4.0), "micro_batches=4.0 must be an integer; write micro_batches=4."),
        (lambda: tg.Accumulate("4"), "write micro_batches=4."),
        (lambda: tg.Accumulate(True), "micro_batches=True must be an integer, such as micro_batches=1."),
        (lambda: tg.Accumulate(np.int64(4)), "write micro_batches=int(...), here 4."),
        (lambda: tg.Accumulate(torch.tensor(4)), "write micro_batches=int(...), here 4."),
        (lambda: tg.Accumulate(2.5), "micro_batches=2.5 must be an integer, such as micro_batches=1."),
        (lambda: tg.clip.GlobalNorm("1.0"), "max_norm='1.0' must be a number; write max_norm=1.0."),
        (lambda: tg.clip.GlobalNorm(np.float32(0.5)), "write max_norm=float(...), here 0.5."),
        (lambda: tg.clip.GlobalNorm(torch.tensor(0.5)), "write max_norm=float(...), here 0.5."),
        (lambda: tg.clip.GlobalNorm(None), "max_norm=None must be a number."),
    ],
)
def test_a_number_in_the_wrong_clothes(make, words):
    with pytest.raises(tg.ConfigError) as error:
        make()
    assert words in str(error.value)
