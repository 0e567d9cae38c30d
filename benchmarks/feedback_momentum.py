"""Error feedback at momentum 0.9 and at 0, in plain PyTorch on one process: what figure 11 cannot show by itself.

    python benchmarks/feedback_momentum.py benchmarks/results/2026-11-29-feedback-momentum.json

The model, the data, the batch and the schedule are those of the image case. Only the largest 1 % of each large gradient
reaches the optimizer, with the rest dropped or kept as a residual.
"""

import json
import math
import sys
from pathlib import Path

import torch

from tightgrad_lab.cases import load_case
from tightgrad_lab.environment import environment

SEEDS = (0, 1, 2)
RATE, EPOCHS, BATCH, DENSITY = 0.05, 2, 64, 0.01


def train(case, data, *, momentum: float, density: float | None, feedback: bool, seed: int) -> float:
    """Return the test accuracy of one run."""
    train_set, test_set = data
    torch.manual_seed(seed)
    model = case.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=momentum, weight_decay=5e-4)
    steps = EPOCHS * math.ceil(len(train_set) / BATCH)
    warm_up = max(1, steps // 10)

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    residuals: dict[torch.nn.Parameter, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        order = torch.randperm(len(train_set), generator=generator)
        for start in range(0, len(train_set), BATCH):
            optimizer.zero_grad()
            case.loss(model, case.batch(train_set, order[start : start + BATCH])).backward()
            if density is not None:
                sparsify(model, residuals, density, feedback=feedback)
            optimizer.step()
            scheduler.step()
    return accuracy(case, model, test_set)


def sparsify(model, residuals, density: float, *, feedback: bool) -> None:
    """Keep the largest entries of each gradient of at least 1,024 elements, as pair 11 does."""
    for parameter in model.parameters():
        if parameter.grad is None or parameter.ndim < 2 or parameter.numel() < 1024:
            continue
        value = parameter.grad.flatten() + (residuals.get(parameter, 0.0) if feedback else 0.0)
        kept = value.abs().topk(max(1, int(density * value.numel()))).indices
        sent = torch.zeros_like(value)
        sent[kept] = value[kept]
        if feedback:
            residuals[parameter] = value - sent
        parameter.grad.copy_(sent.view_as(parameter))


@torch.no_grad()
def accuracy(case, model, test_set) -> float:
    """Return the share of test samples that the model classifies correctly."""
    model.eval()
    right = 0
    for start in range(0, len(test_set), 250):
        inputs, labels = case.batch(test_set, torch.arange(start, min(start + 250, len(test_set))))[:2]
        right += int((model(inputs).argmax(1) == labels).sum())
    return right / len(test_set)


def main() -> None:
    torch.set_num_threads(1)
    case = load_case("image")
    data = case.load()
    rows = []
    for momentum in (0.9, 0.0):
        for density, feedback in ((None, False), (DENSITY, False), (DENSITY, True)):
            found = [
                train(case, data, momentum=momentum, density=density, feedback=feedback, seed=seed) for seed in SEEDS
            ]
            rows.append({"momentum": momentum, "density": density, "error_feedback": feedback, "accuracy": found})
            print(rows[-1], flush=True)
    settings = {"rate": RATE, "epochs": EPOCHS, "batch": BATCH, "seeds": list(SEEDS)}
    result = {"environment": environment(), "settings": settings, "rows": rows}
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
