"""A trained model comes back as it was."""

import torch
from torch import nn

from tightgrad_lab.training.model_file import load_model, save_model


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_tied_weights_come_back_tied(tmp_path):
    model = _Tied()
    save_model(model, tmp_path)
    again = load_model(_Tied(), tmp_path)
    assert torch.equal(again.second.weight, model.first.weight)
    assert again.second.weight is again.first.weight


def test_weights_in_one_storage_are_saved(tmp_path):
    """As cuDNN lays those of an LSTM."""
    model = nn.LSTM(3, 4)
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    for parameter, part in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True):
        parameter.data = part.view_as(parameter)
    save_model(model, tmp_path)
    again = load_model(nn.LSTM(3, 4), tmp_path)
    for parameter, kept in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, kept)
    assert model.weight_ih_l0.untyped_storage().data_ptr() == model.weight_hh_l0.untyped_storage().data_ptr()
