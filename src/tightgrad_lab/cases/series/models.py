"""Forecasters: features of shape (n, history, f), the first of them the series, to forecasts of shape (n, horizon)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

TREND_HOURS = 25


class LSTMForecaster(nn.Module):
    """A long short-term memory (Hochreiter and Schmidhuber 1997) that forecasts the change from the last value."""

    def __init__(self, features: int, horizon: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, horizon)

    def forward(self, past: Tensor) -> Tensor:
        """Shape (n, history, f) to (n, horizon)."""
        states, _ = self.lstm(past)
        change: Tensor = self.head(states[:, -1])
        return past[:, -1, :1] + change


class DLinear(nn.Module):
    """A linear layer for the moving average of the series and one for the rest (Zeng et al. 2023, arXiv:2205.13504)."""

    def __init__(self, history: int, horizon: int) -> None:
        super().__init__()
        self.trend = nn.Linear(history, horizon)
        self.rest = nn.Linear(history, horizon)
        for layer in (self.trend, self.rest):
            nn.init.constant_(layer.weight, 1 / history)
            nn.init.zeros_(layer.bias)

    def forward(self, past: Tensor) -> Tensor:
        """Shape (n, history, f) to (n, horizon); only the series itself is used."""
        series = past[:, :, 0]
        ends = functional.pad(series.unsqueeze(1), (TREND_HOURS // 2, TREND_HOURS // 2), mode="replicate")
        trend = functional.avg_pool1d(ends, TREND_HOURS, stride=1).squeeze(1)
        forecast: Tensor = self.trend(trend) + self.rest(series - trend)
        return forecast


class NLinear(nn.Module):
    """One linear layer on the series less its last value (Zeng et al. 2023)."""

    def __init__(self, history: int, horizon: int) -> None:
        super().__init__()
        self.change = nn.Linear(history, horizon)

    def forward(self, past: Tensor) -> Tensor:
        """Shape (n, history, f) to (n, horizon); only the series itself is used."""
        last = past[:, -1:, 0]
        forecast: Tensor = last + self.change(past[:, :, 0] - last)
        return forecast


def naive(past: Tensor, horizon: int) -> Tensor:
    """The last value again and again."""
    return past[:, -1:, 0].expand(-1, horizon)


def seasonal_naive(past: Tensor, horizon: int, season: int) -> Tensor:
    """The values of the last `season` hours again and again."""
    return past[:, torch.arange(horizon) % season - season, 0]
