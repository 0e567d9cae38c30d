"""A training step over links of several speeds, dense and compressed, and which method pays where.

The numbers are those of `tightgrad bench link`: real steps in network namespaces, each right after one without
communication. Rates above what the machine can shape are those of its links without a limit, as measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tightgrad_lab.bench import link
from tightgrad_lab.bench.link_work import Work
from tightgrad_lab.common.recommended import RECOMMENDED
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.network import why_not
from tightgrad_lab.schema import PAYS
from tightgrad_lab.schema.compression import LinkPoint, LinkSpeedsRow

DENSE = "dense"
"""A method pays when its step takes at most this share of the dense one."""
SHORT_PLANS = ("8-bit blocks", "powersgd rank 4", "topk 0.1 %")


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        rates: bits per second of each link; after them comes a link without a limit.
        ranks: numbers of processes.
        plans: names of recommended ones.
        steps: of each method at each rate, at most.
        seconds: after which a method begins no further step.
        work: the model and its batches.
    """

    rates: tuple[int, ...]
    ranks: tuple[int, ...]
    plans: tuple[str, ...]
    steps: int
    seconds: float
    work: Work = field(default_factory=Work)


class LinkSpeeds(Experiment[Settings]):
    """Step time against link speed."""

    def settings(self, *, full: bool) -> Settings:
        """A small model at two rates, or one of 3 million parameters at five, on two and on four ranks."""
        if not full:
            return Settings((10**7, 10**8), (2,), SHORT_PLANS, 3, 2.0, Work(128, 2, 8))
        rates = (10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9)
        return Settings(rates, (2, 4), tuple(RECOMMENDED), 5, 10.0, Work(256, 4, 16))

    def missing(self) -> str | None:
        """Root and iproute2."""
        return why_not()

    def run(self, settings: Settings, report: Report) -> Measured:
        """Measure every rate on every number of ranks."""
        todo = [(ranks, rate) for ranks in settings.ranks for rate in (*settings.rates, None)]
        points: list[LinkPoint] = []
        about: dict[str, Any] = {}
        for place, (ranks, rate) in enumerate(todo):
            share = place / len(todo)

            def progress(line: str, share: float = share) -> None:
                report(share, line)

            found = link.run(
                rate,
                ranks,
                timing=link.Timing(settings.steps, settings.seconds, predicted_from=0),
                work=settings.work,
                plans={name: RECOMMENDED[name] for name in settings.plans},
                peers=(link.BASE, DENSE),
                progress=progress,
            )
            about = found["work"]
            speed = rate if rate is not None else 8 * found["link"]["bytes_per_second"]
            points += [point(row, speed) for row in found["rows"]]
        figure = {"points": points, "num_parameters": about["num_parameters"], "work": asdict(settings.work)}
        return Measured(figure, table(points), backend="gloo")


def point(row: Mapping[str, Any], bits_per_second: float) -> LinkPoint:
    """What the figure needs of a row of the bench."""
    return {
        "is_limited": row["rate_bits_per_second"] is not None,
        "bits_per_second": bits_per_second,
        "plan": row["plan"],
        "ranks": row["ranks"],
        "step_seconds": row["step_seconds"],
        "ratio_to_no_communication": row["ratio_to_no_communication"],
        "wire_bytes": row["wire_bytes"],
        "interface_payload_bytes": row["interface_payload_bytes"],
        "steps": row["steps"],
    }


def table(points: Sequence[LinkPoint]) -> list[LinkSpeedsRow]:
    """For each number of ranks and rate: the fastest method and its gain over dense."""
    groups: dict[tuple[int, float], dict[str, LinkPoint]] = {}
    for each in points:
        groups.setdefault((each["ranks"], each["bits_per_second"]), {})[each["plan"]] = each
    rows: list[LinkSpeedsRow] = []
    for (ranks, speed), found in groups.items():
        alone, dense = found[link.BASE], found[DENSE]
        methods = [each for name, each in found.items() if name not in (link.BASE, DENSE)]
        best = min(methods, key=lambda each: each["step_seconds"])
        rows.append(
            {
                "ranks": ranks,
                "bits_per_second": speed,
                "is_limited": dense["is_limited"],
                "best": best["plan"],
                "pays": best["step_seconds"] <= PAYS * dense["step_seconds"],
                "gain": dense["step_seconds"] / best["step_seconds"],
                "no_communication_seconds": alone["step_seconds"],
                "dense_seconds": dense["step_seconds"],
                "best_seconds": best["step_seconds"],
                "dense_wire_bytes": dense["wire_bytes"],
                "best_wire_bytes": best["wire_bytes"],
            }
        )
    return rows


EXPERIMENT = LinkSpeeds()
