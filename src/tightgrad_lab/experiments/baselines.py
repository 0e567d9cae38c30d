"""runs/CASE/baselines.json: what simple methods reach on the same test samples, computed here."""

import json
import time
from pathlib import Path

from tightgrad_lab.schema import SCHEMA
from tightgrad_lab.training.case import AnyCase
from tightgrad_lab.training.files import write_json

NAME = "baselines.json"


def write_baselines(folder: Path, name: str, case: AnyCase, inputs: str) -> None:
    """Compute and write them, unless they are there with the same inputs."""
    path = folder / NAME
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("inputs") == inputs:
        return
    start = time.perf_counter()
    found = case.baselines()
    train, test = case.load()
    write_json(
        path,
        {
            "schema": SCHEMA,
            "case": name,
            "metric": case.metric,
            "higher_is_better": case.higher_is_better,
            "train_samples": len(train),
            "test_samples": len(test),
            "inputs": inputs,
            "seconds": time.perf_counter() - start,
            "baselines": found,
        },
    )
