"""Writes a small runs/ tree with made-up numbers. For the tests of the report only; nothing here was measured."""

import json
from pathlib import Path
from typing import Any

COMBINATIONS = (
    "none",
    "clip",
    "accumulate",
    "compress",
    "clip+accumulate",
    "clip+compress",
    "accumulate+compress",
    "clip+accumulate+compress",
)
PARAMETERS = 123_456
EPOCHS = 4


def _write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def summary(combination: str, seed: int) -> dict[str, Any]:
    """Numbers of about the size a real run has, each a simple function of its arguments."""
    parts = combination.split("+")
    value = 0.884 - 0.011 * ("compress" in parts) + 0.002 * ("clip" in parts) - 0.003 * ("accumulate" in parts)
    value -= 0.045 * (combination == "accumulate+compress")
    value = round(value + 0.003 * ((seed * 7 + len(combination) * 3) % 5 - 2), 6)
    steps = 376
    dense = steps * PARAMETERS * 4
    factor = 98.2 if "compress" in parts else 1.0
    curve = [round(value - 0.2 / (epoch + 1) ** 2 + 0.2 / EPOCHS**2, 6) for epoch in range(EPOCHS)]
    return {
        "schema": 1,
        "case": "image",
        "combination": combination,
        "seed": seed,
        "metric": "accuracy",
        "value": value,
        "wire_bytes": int(dense / factor) + 17 * ("clip" in parts) * steps,
        "compression_factor": factor,
        "peak_memory_bytes": 341_000_000
        + 52_000_000 * ("accumulate" not in parts)
        + 1_000_000 * len(parts)
        + 30_000_000 * ("compress" in parts),
        "step_seconds": 0.042 + 0.013 * ("compress" in parts) + 0.0007 * ("clip" in parts),
        "skipped_steps": 0,
        "num_parameters": PARAMETERS,
        "train_samples": 6000,
        "test_samples": 1000,
        "epochs": [
            {"epoch": epoch, "train_loss": 1.2 / (epoch + 1), "value": value_then}
            for epoch, value_then in enumerate(curve)
        ],
        "seconds": 31.0 + len(parts),
    }


def _steps(combination: str) -> str:
    parts = combination.split("+")
    lines = []
    for step in range(8):
        norm = 3.0 / (step + 1)
        lines.append(
            json.dumps(
                {
                    "step": step,
                    "epoch": step // 2,
                    "loss": 2.3 / (step + 1),
                    "grad_norm": norm,
                    "clip_coef": min(1.0, 1.0 / norm) if "clip" in parts else None,
                    "wire_bytes": 4938,
                    "residual_norm": 0.1 if "compress" in parts else None,
                    "skipped": False,
                    "weight": 128,
                    "micro_batches": 4,
                    "seconds": 0.05,
                }
            )
        )
    return "\n".join(lines) + "\n"


def write_run(root: Path, combination: str, seed: int) -> Path:
    """One finished run; returns its folder."""
    folder = root / "image" / combination / f"seed{seed}"
    plan = {"version": 1, "accumulate": {"micro_batches": 4}, "clip": {"id": "global_norm", "max_norm": 1.0}}
    settings = {"batch_size": 128, "micro_batches": 4, "epochs": EPOCHS, "learning_rate": 0.1}
    config = {"schema": 1, "case": "image", "combination": combination, "seed": seed, "ranks": 2}
    _write(folder / "config.json", {**config, "plan": plan, "settings": settings, "command": "tightgrad lab image"})
    _write(
        folder / "environment.json",
        {
            "python": "3.11.7",
            "torch": "2.13.0",
            "tightgrad": "0.1.0.dev0",
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "processor": "a processor of the fixture",
            "cores": 2,
            "device": "cpu",
            "backend": "gloo",
            "memory_bytes": 8 * 2**30,
            "time": f"2026-11-23T21:0{seed}:00+00:00",
        },
    )
    _write(folder / "summary.json", summary(combination, seed))
    (folder / "steps.jsonl").write_text(_steps(combination), encoding="utf-8")
    return folder


def flow() -> dict[str, Any]:
    dense, sparse = PARAMETERS * 4, PARAMETERS * 4 // 100
    return {
        "schema": 1,
        "case": "image",
        "combination": "clip+accumulate+compress",
        "ranks": 2,
        "micro_batches": 4,
        "stages": [
            {"id": "data", "shape": [16, 1, 28, 28], "bytes": 50176},
            {"id": "model", "num_parameters": PARAMETERS},
            {"id": "backward", "bytes": dense, "seconds": 0.0213},
            {"id": "accumulate", "micro_batches": 4, "bytes": dense, "seconds": 0.0011},
            {"id": "guard", "seconds": 0.00031},
            {"id": "feedback", "bytes": dense, "residual_norm": 0.1234, "seconds": 0.00072},
            {"id": "encode", "bytes": sparse, "seconds": 0.0061},
            {"id": "collective", "bytes": sparse, "seconds": 0.0042},
            {"id": "decode", "bytes": dense, "seconds": 0.0009},
            {"id": "clip", "grad_norm": 1.71, "clip_coef": 0.585, "seconds": 0.0005},
            {"id": "optimizer", "seconds": 0.0013},
        ],
    }


def write_runs(root: Path, seeds: int = 1) -> Path:
    """All eight combinations and the flow; returns the root."""
    for combination in COMBINATIONS:
        for seed in range(seeds):
            write_run(root, combination, seed)
    _write(root / "image" / "flow.json", flow())
    return root
