"""The peak is counted to the byte."""

import torch

from tightgrad_lab.training.memory import peak_memory

CPU = torch.device("cpu")


def test_peak_of_known_allocations():
    kept = torch.empty(1_000_000)

    def body():
        first = torch.empty(1_000_000)
        second = torch.empty(500_000)
        del first
        third = torch.empty(100_000)
        return kept, second, third

    assert peak_memory(body, CPU) == 4 * 1_500_000


def test_peak_sees_what_autograd_keeps():
    def body():
        weight = torch.ones(1000, 250, requires_grad=True)
        (weight.exp().sum()).backward()

    size = 4 * 1000 * 250  # the weight, its exponential kept for backward, and the gradient
    assert 3 * size <= peak_memory(body, CPU) < 3.1 * size


def test_the_smallest_of_several_tries_counts():
    sizes = iter([500, 3000, 1000, 2000])  # the first call is not measured
    assert peak_memory(lambda: torch.empty(next(sizes)), CPU, tries=3) == 4000
