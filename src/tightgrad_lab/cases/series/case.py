"""Forecasts of PM2.5 with an LSTM or DLinear. The loss is over observed hours, and so is every score."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad_lab.cases.series.data import HOURS_A_DAY, Windows, load_hours, windows
from tightgrad_lab.cases.series.models import DLinear, LSTMForecaster, naive, seasonal_naive
from tightgrad_lab.training.case import Batch, Case, Example, Scores, Settings

BASELINE_BATCH = 1000
SHOWN_HOURS = 8


@dataclass(frozen=True)
class SeriesCase(Case[Windows]):
    """One model and horizon.

    Args:
        network: "lstm" or "dlinear".
        history: hours that a forecast is made from.
        horizon: hours that are forecast.
        every: hours from one training window to the next.
        epochs: passes over the training windows.
        variant: its name.
    """

    id: ClassVar[str] = "series"
    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False

    network: str
    history: int
    horizon: int
    every: int
    epochs: int
    variant: str

    def settings(self, *, full: bool) -> Settings:
        """Adam, as the field does; weight decay 0."""
        return Settings(
            epochs=self.epochs,
            seeds=3 if full else 1,
            batch_size=128,
            micro_batches=4,
            learning_rate=5e-3,
            warmup_fraction=0.1,
            momentum=0.9,
            weight_decay=0.0,
            clip=tg.clip.GlobalNorm(0.5),
            compress=tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback()),
            variant=self.variant,
        )

    def load(self) -> tuple[Windows, Windows]:
        """Training windows and, one in each hour, test windows."""
        return self._parts

    @cached_property
    def _parts(self) -> tuple[Windows, Windows]:
        hours = load_hours()
        return (
            windows(hours, "train", history=self.history, horizon=self.horizon, every=self.every),
            windows(hours, "test", history=self.history, horizon=self.horizon),
        )

    def model(self) -> nn.Module:
        """A fresh network."""
        if self.network == "lstm":
            return LSTMForecaster(load_hours().features.shape[1], self.horizon, hidden=64)
        return DLinear(self.history, self.horizon)

    def optimizer(self, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        """AdamW."""
        betas = (settings.momentum, 0.999)
        return torch.optim.AdamW(
            model.parameters(), settings.learning_rate, betas, weight_decay=settings.weight_decay, fused=True
        )

    def batch(self, samples: Windows, indices: Tensor) -> Batch:
        """Features (n, history, f), and hours to forecast and whether they were observed (n, horizon)."""
        return samples.past(indices), *samples.future(indices)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean squared error over the observed hours."""
        past, future, observed = batch
        squared: Tensor = (model(past) - future).square() * observed
        return squared.sum() / observed.sum().clamp(min=1)

    def weight(self, batch: Batch) -> Tensor:
        """Observed hours to forecast."""
        return batch[2].sum()

    def count(self, model: nn.Module, batch: Batch, samples: Windows, indices: Tensor) -> Tensor:
        """Sums of squared and of absolute errors, and hours."""
        past, future, observed = batch
        return errors(model(past), future, observed)

    def scores(self, statistics: Tensor) -> Scores:
        """Mean squared and mean absolute error, standardised."""
        squared, absolute, hours = statistics.tolist()
        return {"mse": squared / hours, "mae": absolute / hours}

    def baselines(self) -> dict[str, Scores]:
        """The last value, the last day, and the mean of the training hours (0 when standardised), for ever."""
        _, test = self.load()
        totals = {name: torch.zeros(3, dtype=torch.float64) for name in ("naive", "seasonal_naive", "mean")}
        for indices in torch.arange(len(test)).split(BASELINE_BATCH):
            past, future, observed = self.batch(test, indices)
            totals["naive"] += errors(naive(past, self.horizon), future, observed)
            totals["seasonal_naive"] += errors(seasonal_naive(past, self.horizon, HOURS_A_DAY), future, observed)
            totals["mean"] += errors(torch.zeros_like(future), future, observed)
        return {name: self.scores(total) for name, total in totals.items()}

    @torch.no_grad()
    def examples(self, model: nn.Module, indices: Tensor) -> list[Example]:
        """Micrograms a cubic metre: the last hours of the history, the first hours forecast."""
        _, test = self.load()
        past, future, observed = self.batch(test, indices)
        forecasts = model(past)

        def text(values: Tensor, known: Tensor) -> str:
            numbers = (values.double() * test.hours.std + test.hours.mean).tolist()
            shown = (f"{n:.0f}" if is_known else "-" for n, is_known in zip(numbers, known.tolist(), strict=True))
            return " ".join(shown)

        return [
            Example(
                text(past[i, -SHOWN_HOURS:, 0], past[i, -SHOWN_HOURS:, 1] > 0),
                text(future[i, :SHOWN_HOURS], observed[i, :SHOWN_HOURS]),
                text(forecasts[i, :SHOWN_HOURS], torch.ones(SHOWN_HOURS)),
            )
            for i in range(len(indices))
        ]


def errors(forecasts: Tensor, future: Tensor, observed: Tensor) -> Tensor:
    """Sums of squared and absolute errors over observed hours, and their number: float64, shape (3,)."""
    gaps = (forecasts.double() - future.double()) * observed
    return torch.stack([gaps.square().sum(), gaps.abs().sum(), observed.sum().double()])


_SHAPES = {"lstm-24": ("lstm", 72, 24), "lstm-96": ("lstm", 72, 96)}
_SHAPES |= {"dlinear-24": ("dlinear", 336, 24), "dlinear-96": ("dlinear", 336, 96)}
VARIANTS = {name: SeriesCase(*shape, every=4, epochs=3, variant=name) for name, shape in _SHAPES.items()}
WHOLE = {
    f"{name}-full": SeriesCase(*shape, every=1, epochs=10, variant=f"{name}-full") for name, shape in _SHAPES.items()
}
