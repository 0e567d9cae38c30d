"""The record's loss: the mean over the weight of this rank's micro-batches."""

import pytest
import torch

from tightgrad.pipeline.meters.loss_meter import LossMeter

WEIGHTS = (3.0, 1.0, 0.0, 2.0)


def meter_of(losses, *, is_mean):
    meter = LossMeter("loss", is_mean=is_mean)
    for loss, weight in zip(losses, WEIGHTS, strict=True):
        meter.add({"loss": loss, "other": loss * 100}, {"loss": weight, "other": 1.0})
        loss.data.fill_(1e9)  # what the user does with it afterwards does not count
    return meter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_means_are_weighed_and_sums_are_added(dtype, shape):
    losses = [torch.full(shape, value, dtype=dtype, requires_grad=True) for value in (0.5, 2.0, 77.0, -1.0)]
    assert meter_of([t.clone() for t in losses], is_mean=True).pop() == (3 * 0.5 + 2.0 - 2.0) / 6
    assert meter_of([t.clone() for t in losses], is_mean=False).pop() == (0.5 + 2.0 - 1.0) / 6


def test_none_without_weight_and_after_it_was_taken():
    meter = LossMeter("loss", is_mean=True)
    assert meter.pop() is None
    meter.add({"loss": torch.tensor(1.0)}, {"loss": 0.0})
    assert meter.pop() is None
    meter.add({"loss": torch.tensor(1.0)}, {"loss": 2.0})
    assert meter.pop() == 1.0
    assert meter.pop() is None


def test_losses_on_a_device_are_looked_at_when_taken():
    """Their numbers are kept there; a device without numbers shows that none was asked for before."""
    meter = LossMeter("loss", is_mean=True)
    meter.add({"loss": torch.empty((), device="meta")}, {"loss": 1.0})
    with pytest.raises((NotImplementedError, RuntimeError)):
        meter.pop()
