"""Forwards draw the same numbers again, from every generator that they may use."""

import random

import numpy as np
import pytest
import torch

from tightgrad.core.global_rng import GlobalRng

DRAWS = {
    "torch": lambda: torch.rand(3).tolist(),
    "dropout": lambda: torch.nn.functional.dropout(torch.ones(64)).tolist(),
    "numpy": lambda: np.random.rand(3).tolist(),
    "python": lambda: [random.random() for _ in range(3)],
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_numbers_are_drawn_again(name):
    before = GlobalRng.now()
    first, second = DRAWS[name](), DRAWS[name]()
    assert first != second
    before.restore()
    assert [DRAWS[name](), DRAWS[name]()] == [first, second]
