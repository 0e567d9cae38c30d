"""Truncated backpropagation through time: one sequence in pieces, a step after each."""

import torch
import torch.nn.functional as F
from torch import nn


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 8)
        self.output = nn.Linear(8, 1)

    def forward(self, inputs, state):
        states = []
        for one in inputs:
            state = self.cell(one, state)
            states.append(state)
        return self.output(torch.stack(states)), state


def build_model():
    return Recurrent()


def make_batches(count, ragged):
    """Pieces of one long sequence: (time, batch, features). The state that each starts from belongs to the loop."""
    lengths = [2 + (5 * i) % 7 if ragged else 4 for i in range(count)]
    return [(torch.randn(length, 3, 3), torch.randn(length, 3, 1), torch.zeros(3, 8)) for length in lengths]


def loss(model, batch):
    inputs, targets, state = batch
    return F.mse_loss(model(inputs, state)[0], targets), targets.numel()


def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, targets, state in batches:
        middle = len(inputs) // 2
        first, state = model(inputs[:middle], state)
        second, state = model(inputs[middle:], state)
        F.mse_loss(torch.cat([first, second]), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
