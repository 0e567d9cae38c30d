"""Claims of four papers of the course on small models: rounding, underflow, layer-wise rates, idle ranks.

Alistarh et al. 2017, QSGD, arXiv:1610.02132; Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740;
You et al. 2017, LARS, arXiv:1708.03888; Ott et al. 2018, Scaling Neural Machine Translation, arXiv:1806.00187 (in
fairseq); He et al. 2016, Deep Residual Learning, doi 10.1109/CVPR.2016.90.
"""

from dataclasses import dataclass
from typing import Any

import torch

from tightgrad_lab.cases.image import ImageCase
from tightgrad_lab.experiments.codec_gallery import Settings as GradientSettings
from tightgrad_lab.experiments.codec_gallery import gradient
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.paper_claims import idle, rounding


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        sizes: of the vectors that are rounded.
        draws: roundings of each vector that are averaged.
        gradient_steps: of training before a gradient is taken.
        loss_scales: whose effect on fp16 is measured.
        ranks: that wait for each other.
        rounds: micro-batches of each rank whose time is taken.
        micro_batches: of the windows whose idle time is told.
    """

    sizes: tuple[int, ...]
    draws: int
    gradient_steps: int
    loss_scales: tuple[int, ...]
    ranks: int
    rounds: int
    micro_batches: tuple[int, ...]


class PaperClaims(Experiment[Settings]):
    """Rows of several kinds, told apart by their paper."""

    def settings(self, *, full: bool) -> Settings:
        """Some seconds each."""
        scales, windows = (1, 8, 1024), (1, 4, 16)
        if full:
            sizes = tuple(10**power for power in range(2, 8))
            return Settings(sizes, 2, 20, scales, 8, 64, windows)
        return Settings((100, 10_000), 2, 3, scales, 4, 16, windows)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Measure one claim after the other."""
        torch.set_num_threads(1)
        _, grads = gradient(GradientSettings(settings.gradient_steps), lambda share, what: report(0.7 * share, what))
        flat = torch.cat([grad.flatten() for grad in grads.values()])
        rows: list[dict[str, Any]] = []
        generator = torch.Generator().manual_seed(0)
        for size in settings.sizes:
            vector = torch.randn(size, generator=generator)
            rows.append({"paper": "qsgd", "vector": "normal", **rounding.row(vector, settings.draws, generator)})
        rows.append({"paper": "qsgd", "vector": "gradient", **rounding.row(flat, settings.draws, generator)})
        rows += [
            {"paper": "micikevicius", "loss_scale": scale, "lost": rounding.lost_in_fp16(flat, scale)}
            for scale in settings.loss_scales
        ]
        rows += [{"paper": "lars", **row} for row in layer_ratios()]
        report(0.8, "idle ranks")
        seconds = idle.seconds(settings.ranks, settings.rounds)
        rows += [
            {
                "paper": "fairseq",
                "ranks": settings.ranks,
                "micro_batches": count,
                "idle": idle.idle_share(seconds, count),
            }
            for count in settings.micro_batches
        ]
        return Measured({"num_parameters": flat.numel(), "lines": idle.LINES}, rows)


def layer_ratios(batch: int = 128) -> list[dict[str, Any]]:
    """Return the norm of each weight over that of its gradient, at the first step of the image case."""
    case = ImageCase()
    torch.manual_seed(0)
    model = case.model()
    samples, _ = case.load()
    case.loss(model, case.batch(samples, torch.arange(batch))).backward()
    return [
        {"layer": name, "ratio": float(weight.detach().norm() / weight.grad.norm())}
        for name, weight in model.named_parameters()
        if weight.ndim > 1 and weight.grad is not None
    ]


EXPERIMENT = PaperClaims()
