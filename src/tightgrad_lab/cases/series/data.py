"""The hours, their gaps, and the windows cut from them.

Split in time: the first 70 % of the hours train, 10 % are kept for choosing settings, the last 20 % test. A window lies
in one part whole, its history as well, so nothing of a test window was seen in training. Standardised with mean and
standard deviation of the training hours.

Gaps: 2,067 hours have no PM2.5. In a history, a gap takes the last value before it (the training mean if there is
none), and a feature of its own says that it is one. A gap in the hours to forecast is neither trained on nor scored;
a window with nothing to forecast is left out.
"""

import csv
import gzip
import io
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

DATA = "beijing_pm25_hourly.csv.gz"
WINDS = ("NW", "NE", "SE", "cv")
WEATHER = ("DEWP", "TEMP", "PRES", "Iws", "Is", "Ir")
PARTS = {"train": (0.0, 0.7), "validation": (0.7, 0.8), "test": (0.8, 1.0)}
LONGEST_HISTORY = 336
HOURS_A_DAY = 24


@dataclass(frozen=True)
class Hours:
    """A series by the hour.

    Attributes:
        features: float32, shape (hours, f), standardised; the first is PM2.5 without gaps, the second 1 where it was
            observed.
        target: standardised PM2.5, float32, shape (hours,), 0 in gaps.
        observed: bool, shape (hours,).
        mean: of PM2.5 in the training hours, in micrograms a cubic metre.
        std: of the same.
    """

    features: Tensor
    target: Tensor
    observed: Tensor
    mean: float
    std: float


@dataclass(frozen=True)
class Windows:
    """Forecasts to make: from `history` hours before an origin, the `horizon` hours from it on.

    Attributes:
        hours: the whole series.
        origins: int64, shape (n,), the first hour to forecast.
        history: hours.
        horizon: hours.
    """

    hours: Hours
    origins: Tensor
    history: int
    horizon: int

    def __len__(self) -> int:
        return len(self.origins)

    def past(self, indices: Tensor) -> Tensor:
        """Features, shape (n, history, f)."""
        return self.hours.features[self.origins[indices].unsqueeze(1) + torch.arange(-self.history, 0)]

    def future(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """What to forecast, and where it was observed: float32 and bool, shape (n, horizon)."""
        place = self.origins[indices].unsqueeze(1) + torch.arange(self.horizon)
        return self.hours.target[place], self.hours.observed[place]


def filled(values: Tensor, before: float) -> Tensor:
    """Replace each NaN with the last number before it, or with `before`; shape (n,)."""
    found = ~values.isnan()
    place = torch.where(found, torch.arange(len(values)), -1).cummax(0).values
    return torch.where(place >= 0, values[place.clamp(min=0)], before)


def part_bounds(part: str, num_hours: int) -> tuple[int, int]:
    """First hour of a part, and the hour after its last."""
    first, last = PARTS[part]
    return round(first * num_hours), round(last * num_hours)


def windows(hours: Hours, part: str, *, history: int, horizon: int, every: int = 1) -> Windows:
    """The windows that lie in a part whole, one in `every` hours.

    Forecasts start at the same hours whatever the history is, up to `LONGEST_HISTORY`.
    """
    start, end = part_bounds(part, len(hours.target))
    origins = torch.arange(start + max(history, LONGEST_HISTORY), end - horizon + 1, every)
    known = hours.observed.long().cumsum(0)
    some = known[origins + horizon - 1] > known[origins - 1]
    return Windows(hours, origins[some], history, horizon)


@cache
def load_hours() -> Hours:
    """The embedded series."""
    packed = (files("tightgrad_lab") / "data" / DATA).read_bytes()
    return parsed(gzip.decompress(packed).decode("ascii"))


def parsed(text: str) -> Hours:
    """Read the file as published, gaps as `NA`."""
    rows = list(csv.DictReader(io.StringIO(text)))
    raw = torch.tensor([math.nan if row["pm2.5"] == "NA" else float(row["pm2.5"]) for row in rows], dtype=torch.float64)
    train = slice(*part_bounds("train", len(rows)))
    observed = ~raw.isnan()
    known = raw[train][observed[train]]
    mean, std = float(known.mean()), float(known.std())
    standard = (raw - mean) / std
    weather = torch.tensor([[float(row[name]) for name in WEATHER] for row in rows], dtype=torch.float64)
    weather[:, 3:] = weather[:, 3:].log1p()
    weather = (weather - weather[train].mean(0)) / weather[train].std(0).clamp(min=1e-9)
    wind = torch.tensor([[float(row["cbwd"] == name) for name in WINDS] for row in rows], dtype=torch.float64)
    angle = torch.tensor([2 * math.pi * int(row["hour"]) / HOURS_A_DAY for row in rows], dtype=torch.float64)
    columns = [filled(standard, 0.0).unsqueeze(1), observed.double().unsqueeze(1), weather, wind]
    columns += [angle.sin().unsqueeze(1), angle.cos().unsqueeze(1)]
    return Hours(torch.cat(columns, 1).float(), standard.nan_to_num(0.0).float(), observed, mean, std)
