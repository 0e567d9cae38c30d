"""runs/CASE/full.json: what the full settings of a case gave, in one small file that can be published.

`src/tightgrad_lab/published/CASE.json` is such a file; the report shows it where this machine has none of its own.
"""

import json
from pathlib import Path
from typing import Any

from tightgrad_lab.cases import full_variants, load_case
from tightgrad_lab.experiments.baselines import NAME as BASELINES
from tightgrad_lab.schema import SCHEMA
from tightgrad_lab.training.files import write_json

NAME = "full.json"
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10-resnet20": {"metric": "accuracy", "value": 0.9125, "source": "He et al. 2016, 164 epochs"},
    "fashion-mnist": {"metric": "accuracy", "value": 0.949, "source": "ResNet-18, Fashion-MNIST benchmark"},
    "trec-lstm": {"metric": "accuracy", "value": 0.912, "source": "Kim 2014, CNN-rand"},
    "trec-bert": {"metric": "accuracy", "value": 0.912, "source": "Kim 2014, CNN-rand"},
    "etth1-nlinear-96": {"metric": "mse", "value": 0.374, "source": "Zeng et al. 2023, NLinear"},
    "etth1-dlinear-96": {"metric": "mse", "value": 0.375, "source": "Zeng et al. 2023, DLinear"},
}
"""What was published for such a model and data set."""

_KEYS = (
    "value",
    "metrics",
    "wire_bytes",
    "compression_factor",
    "peak_memory_bytes",
    "step_seconds",
    "skipped_steps",
    "num_parameters",
    "train_samples",
    "test_samples",
    "seconds",
)
_SETTINGS = ("epochs", "batch_size", "micro_batches", "learning_rate")


def collect(runs: Path, case: str) -> dict[str, Any] | None:
    """All finished runs of the full settings; None if there are none."""
    found = []
    for name in full_variants(case):
        folder = runs / case / "variants" / name
        summaries = sorted(folder.glob("*/seed*/summary.json"))
        if summaries and (folder / BASELINES).is_file():
            found.append(
                {
                    "variant": name,
                    "baselines": _load(folder / BASELINES)["baselines"],
                    "reference": PUBLISHED.get(name),
                    "runs": [_run(path.parent) for path in summaries],
                }
            )
    if not found:
        return None
    metric, higher = load_case(case).metric, load_case(case).higher_is_better
    return {"schema": SCHEMA, "case": case, "metric": metric, "higher_is_better": higher, "variants": found}


def write_variants(runs: Path, case: str) -> None:
    """Write runs/CASE/full.json if there is anything to say."""
    found = collect(runs, case)
    if found is not None:
        write_json(runs / case / NAME, found)


def _run(folder: Path) -> dict[str, Any]:
    summary, config = _load(folder / "summary.json"), _load(folder / "config.json")
    return {
        "combination": summary["combination"],
        "seed": summary["seed"],
        **{key: summary[key] for key in _KEYS},
        "ranks": config["ranks"],
        "command": config["command"],
        "settings": {key: config["settings"][key] for key in _SETTINGS},
        "environment": _load(folder / "environment.json"),
    }


def _load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
