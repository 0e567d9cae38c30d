"""A checkpoint of mid-window, taken up on another device than that of its file."""

import torch
from torch import nn

from tightgrad.checkpoint.open_window import OpenWindow


def test_gradients_go_where_their_parameters_are() -> None:
    """Files hold no device: what is loaded is on the CPU. "meta" stands for a GPU here; tests/gpu has the real one."""
    parameters = {"weight": nn.Parameter(torch.zeros(3, device="meta"))}
    saved = {
        "position": 1,
        "weights": [{"loss": 1.0}, {"loss": 1.0}],
        "total_weights": {"loss": 2.0},
        "grads": {"weight": torch.ones(3)},
        "sums": {"weight": torch.ones(3)},
        "loss_scale": None,
    }
    window = OpenWindow.from_saved(saved, parameters)
    assert window.grads["weight"].device.type == window.sums["weight"].device.type == "meta"
