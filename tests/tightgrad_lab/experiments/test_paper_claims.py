"""What stands behind the table of papers: codes, underflow, waiting ranks, networks of a given depth; Muon's run."""

import pytest
import torch
from torch import nn

from tightgrad_lab.experiments.loss_spikes.train import Run, _optimizers
from tightgrad_lab.experiments.loss_spikes.train import train as train_spiky
from tightgrad_lab.experiments.paper_claims import depth, idle, rounding


def test_rounding_is_unbiased_and_within_its_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(100, generator=generator)
    mean = torch.stack([rounding.round_at_random(vector, 10.0, generator) for _ in range(2000)]).mean(0)
    assert torch.allclose(mean * vector.norm() / 10, vector, atol=0.15)
    row = rounding.row(vector, 5, generator)
    assert 1 < row["second_moment"] < 2


@pytest.mark.parametrize(("value", "bits"), [(1, 1), (2, 3), (3, 3), (4, 6), (7, 6), (8, 7), (15, 7), (16, 11)])
def test_omega_code(value: int, bits: int) -> None:
    assert rounding.omega_bits(value) == bits


def test_fp16_loses_what_lies_below_half_of_its_smallest_number() -> None:
    gradient = torch.tensor([0.0, 1e-8, 2.9e-8, 3.1e-8, 1.0])
    assert rounding.lost_in_fp16(gradient, 1) == 0.5
    assert rounding.lost_in_fp16(gradient, 8) == 0.0


def test_ranks_wait_for_the_slowest() -> None:
    taken = [[1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 1.0, 3.0]]
    assert idle.idle_share(taken, 1) == pytest.approx(4 / 16)
    assert idle.idle_share(taken, 4) == pytest.approx(4 / 16)
    assert idle.idle_share([[2.0, 2.0], [2.0, 2.0]], 1) == 0.0


@pytest.mark.parametrize("shortcuts", [False, True])
def test_a_network_has_as_many_layers_as_asked(shortcuts: bool) -> None:
    model = depth.network(depth.Run(8, shortcuts, seed=0, steps=1))
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 8
    block = next(module for module in model.modules() if isinstance(module, depth.Block))
    nn.init.zeros_(block.norms[1].weight)
    features = torch.rand(1, depth.CHANNELS, 4, 4)
    assert torch.equal(block(features), features * shortcuts)


def test_a_short_training_of_a_deep_network_is_finite() -> None:
    loss = depth.train(depth.Run(8, shortcuts=True, seed=0, steps=2))
    assert loss is not None
    assert 1.0 < loss < 4.0


def test_muon_takes_the_matrices_of_the_layers_and_nothing_twice() -> None:
    run = Run("global_norm", 0, 0, 2, 2, 32, 1, 1e-3, muon_rate=0.01)
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    muon, adamw = _optimizers(run, model)
    owned = [[id(p) for group in one.param_groups for p in group["params"]] for one in (muon, adamw)]
    assert owned[0] == [id(model["encoder"].weight)]
    assert sorted(owned[0] + owned[1]) == sorted(id(p) for p in model.parameters())
    assert train_spiky(run)["final_loss"] is not None
