"""What a sender loses it keeps; the arms are the ones compared; a rate is chosen without the test samples."""

import pytest
import torch

from tightgrad_lab.experiments.accuracy_vs_bytes import feedback
from tightgrad_lab.experiments.accuracy_vs_bytes.feedback import EQUAL_RATE, MOMENTUM, Arm, Sender


def gradients(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(64, 32, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("method", feedback.SENT)
def test_with_error_feedback_everything_arrives_or_is_kept(method: str) -> None:
    sender, grads = Sender(Arm(method, "error_feedback", 0.0, 0.1, 0)), gradients(5)
    arrived = sum(sender.send("w", grad) for grad in grads)
    torch.testing.assert_close(arrived + sender.kept["w"], torch.stack(grads).sum(0), rtol=1e-4, atol=1e-4)
    assert sender.dense > 3 * sender.sent


def test_without_feedback_nothing_is_added_later() -> None:
    grad = gradients(1)[0]
    sender = Sender(Arm("topk_1", "none", 0.0, 0.1, 0))
    first, second = sender.send("w", grad), sender.send("w", grad)
    assert torch.equal(first, second)
    assert 0 < int((first != 0).sum()) <= 21


def test_corrected_momentum_is_masked_where_it_was_sent() -> None:
    sender, grad = Sender(Arm("topk_1", "momentum_correction", MOMENTUM, 0.1, 0)), gradients(1)[0]
    arrived = sender.send("w", grad)
    sent = arrived != 0
    assert not sender.velocity["w"][sent].any()
    assert torch.equal(sender.velocity["w"][~sent], grad[~sent])
    torch.testing.assert_close(sender.kept["w"] + arrived, grad)


def test_small_tensors_are_sent_whole() -> None:
    bias = torch.randn(10)
    assert torch.equal(Sender(Arm("topk_1", "error_feedback", 0.0, 0.1, 0)).send("b", bias), bias)


def test_the_rate_is_the_best_on_held_out_samples_and_the_equal_one_is_kept_too() -> None:
    arms = [Arm("sign", "none", 0.0, rate, seed) for rate in (0.1, EQUAL_RATE) for seed in range(2)]
    found = [{"held_out": h, "accuracy": a, "factor": 9.0} for h, a in ((0.9, 0.5), (0.9, 0.6), (0.8, 0.7), (0.8, 0.8))]
    (row,) = feedback.rows(arms, found)
    assert row["rate"] == 0.1
    assert row["accuracy"] == [0.5, 0.6]
    assert row["accuracy_at_equal_rate"] == [0.7, 0.8]


def test_every_method_is_compared_with_and_without() -> None:
    arms = feedback.make_arms(("int4", "topk_1"), (0.1, EQUAL_RATE), 3)
    kinds = {(arm.method, arm.feedback, arm.momentum) for arm in arms}
    assert len(kinds) == 2 + 4 + 5
    assert len(arms) == 6 * len(kinds)
    assert ("int4", "momentum_correction", MOMENTUM) not in kinds
