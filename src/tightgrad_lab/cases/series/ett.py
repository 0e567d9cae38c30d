"""ETTh1 (Zhou et al. 2021, arXiv:2012.07436): seven readings of a transformer, 336 hours to the next 96.

Split and scoring as published: the first 12 months of 30 days train, four more are kept for choosing settings, the
next four test, with the history of their first windows before them; all seven readings, standardised by the training
months, count alike.
"""

import csv
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import tightgrad as tg
from tightgrad_lab.cases.series.models import DLinear, NLinear
from tightgrad_lab.fetch import need
from tightgrad_lab.training.case import Batch, Case, Example, Scores, Settings

MONTH = 30 * 24
TRAIN_END, TEST_BEGIN, TEST_END = 12 * MONTH, 16 * MONTH, 20 * MONTH
HOURS_A_DAY = 24
BASELINE_BATCH = 1000
SHOWN_HOURS = 8


@dataclass(frozen=True)
class EttWindows:
    """Forecasts to make.

    Attributes:
        values: standardised, float32, shape (hours, readings).
        origins: the first hour of each forecast, int64, shape (n,).
        history: hours that a forecast is made from.
        horizon: hours that are forecast.
    """

    values: Tensor
    origins: Tensor
    history: int
    horizon: int

    def __len__(self) -> int:
        return len(self.origins)

    def cut(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The past (n, history, readings) and the future (n, horizon, readings)."""
        origins = self.origins[indices].unsqueeze(1)
        return self.values[origins + torch.arange(-self.history, 0)], self.values[origins + torch.arange(self.horizon)]


class EachReading(nn.Module):
    """One forecaster for all readings, each forecast from itself."""

    def __init__(self, forecaster: nn.Module) -> None:
        super().__init__()
        self.forecaster = forecaster

    def forward(self, past: Tensor) -> Tensor:
        """Shape (n, history, readings) to (n, horizon, readings)."""
        count, history, readings = past.shape
        alone = past.transpose(1, 2).reshape(count * readings, history, 1)
        forecasts: Tensor = self.forecaster(alone)
        return forecasts.view(count, readings, -1).transpose(1, 2)


@dataclass(frozen=True)
class EttCase(Case[EttWindows]):
    """One model.

    Args:
        network: class of the forecaster, made with history and horizon.
        history: hours that a forecast is made from.
        horizon: hours that are forecast.
        variant: its name.
    """

    id: ClassVar[str] = "series"
    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False

    network: type[DLinear | NLinear]
    history: int
    horizon: int
    variant: str

    def settings(self, *, full: bool) -> Settings:
        """Adam, batches of 32 and a rate of 0.005 as published (Zeng et al. 2023), with warm-up and a cosine."""
        return Settings(
            epochs=10,
            seeds=3 if full else 1,
            batch_size=32,
            micro_batches=2,
            learning_rate=5e-3,
            warmup_fraction=0.1,
            momentum=0.9,
            weight_decay=0.0,
            clip=tg.clip.GlobalNorm(0.5),
            compress=tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback()),
            variant=self.variant,
        )

    def load(self) -> tuple[EttWindows, EttWindows]:
        """Training and test windows, one in each hour: 8,209 and 2,785 with 336 and 96 hours."""
        return self._parts

    @cached_property
    def _parts(self) -> tuple[EttWindows, EttWindows]:
        with (need("etth1") / "ETTh1.csv").open(encoding="ascii", newline="") as file:
            rows = [[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]]
        raw = torch.tensor(rows, dtype=torch.float64)[:TEST_END]
        train = raw[:TRAIN_END]
        values = ((raw - train.mean(0)) / train.std(0, correction=0)).float()
        origins = torch.arange(self.history, TRAIN_END - self.horizon + 1)
        tested = torch.arange(TEST_BEGIN, TEST_END - self.horizon + 1)
        return (
            EttWindows(values, origins, self.history, self.horizon),
            EttWindows(values, tested, self.history, self.horizon),
        )

    def model(self) -> nn.Module:
        """A fresh network."""
        return EachReading(self.network(self.history, self.horizon))

    def optimizer(self, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        """AdamW, which is Adam at weight decay 0."""
        betas = (settings.momentum, 0.999)
        return torch.optim.AdamW(
            model.parameters(), settings.learning_rate, betas, weight_decay=settings.weight_decay, fused=True
        )

    def batch(self, samples: EttWindows, indices: Tensor) -> Batch:
        """The past (n, history, 7) and the future (n, horizon, 7)."""
        return samples.cut(indices)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error."""
        past, future = batch
        return functional.mse_loss(model(past), future)

    def count(self, model: nn.Module, batch: Batch, samples: EttWindows, indices: Tensor) -> Tensor:
        """Sums of squared and of absolute errors, and their number."""
        past, future = batch
        return _errors(model(past), future)

    def scores(self, statistics: Tensor) -> Scores:
        """Mean squared and mean absolute error, standardised."""
        squared, absolute, count = statistics.tolist()
        return {"mse": squared / count, "mae": absolute / count}

    def baselines(self) -> dict[str, Scores]:
        """The last values, and the last day, again and again."""
        _, test = self.load()
        totals = {name: torch.zeros(3, dtype=torch.float64) for name in ("naive", "seasonal_naive")}
        days = torch.arange(self.horizon) % HOURS_A_DAY - HOURS_A_DAY
        for indices in torch.arange(len(test)).split(BASELINE_BATCH):
            past, future = test.cut(indices)
            totals["naive"] += _errors(past[:, -1:].expand(-1, self.horizon, -1), future)
            totals["seasonal_naive"] += _errors(past[:, days], future)
        return {name: self.scores(total) for name, total in totals.items()}

    @torch.no_grad()
    def examples(self, model: nn.Module, indices: Tensor) -> list[Example]:
        """The oil temperature, standardised: the last hours of the history, the first hours forecast."""
        _, test = self.load()
        past, future = self.batch(test, indices)
        forecasts = model(past)
        shown = (past[:, -SHOWN_HOURS:, -1], future[:, :SHOWN_HOURS, -1], forecasts[:, :SHOWN_HOURS, -1])
        return [
            Example(*(" ".join(f"{value:.2f}" for value in part[i].tolist()) for part in shown))
            for i in range(len(indices))
        ]


def _errors(forecasts: Tensor, future: Tensor) -> Tensor:
    gaps = forecasts.double() - future.double()
    return torch.stack([gaps.square().sum(), gaps.abs().sum(), torch.tensor(float(gaps.numel())).double()])


VARIANTS = {
    "etth1-nlinear-96": EttCase(NLinear, 336, 96, "etth1-nlinear-96"),
    "etth1-dlinear-96": EttCase(DLinear, 336, 96, "etth1-dlinear-96"),
}
