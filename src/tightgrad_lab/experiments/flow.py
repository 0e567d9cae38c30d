"""Figure 15 to 17: the stages of one optimizer step with their measured sizes and median seconds."""

import statistics
from typing import Any

from tightgrad_lab.training.loop import Result

FLOAT_NBYTES = 4


def flow(result: Result) -> dict[str, Any]:
    """The stages in the order in which data walks through them; bytes are those of one rank."""
    gradient_nbytes = result.num_parameters * FLOAT_NBYTES
    micro_batches = max(step["micro_batches"] for step in result.steps)

    def seconds(stage: str) -> dict[str, float]:
        found = [step["stage_seconds"].get(stage) for step in result.steps]
        known = [value for value in found if value is not None]
        return {"seconds": statistics.median(known)} if known else {}

    def median(key: str) -> dict[str, float]:
        known = [step[key] for step in result.steps if step[key] is not None]
        return {key: statistics.median(known)} if known else {}

    acted = [step for step in result.steps if step["clip_coef"] is not None and step["clip_coef"] < 1]
    shown = sorted(acted, key=lambda step: step["clip_coef"])[len(acted) // 2] if acted else None
    clip = (
        {key: shown[key] for key in ("grad_norm", "clip_coef")} if shown else median("grad_norm") | median("clip_coef")
    )
    wire_bytes = round(median("wire_bytes")["wire_bytes"])
    stages: list[dict[str, Any]] = [
        {"id": "data", "shape": list(result.batch_shape), "bytes": result.batch_nbytes},
        {"id": "model", "num_parameters": result.num_parameters, **seconds("forward")},
        {"id": "backward", "bytes": gradient_nbytes, **seconds("backward")},
        {"id": "accumulate", "micro_batches": micro_batches, "bytes": gradient_nbytes, **seconds("accumulate")},
        {"id": "guard", **seconds("guard")},
        {"id": "feedback", "bytes": gradient_nbytes, **median("residual_norm")},
        {"id": "encode", "bytes": result.payload_nbytes, **seconds("encode")},
        {"id": "collective", "bytes": wire_bytes, **seconds("collective")},
        {"id": "decode", "bytes": gradient_nbytes, **seconds("decode")},
        {"id": "clip", **clip, "clipped": len(acted) / len(result.steps), **seconds("clip")},
        {"id": "optimizer", **seconds("optimizer")},
    ]
    return {"micro_batches": micro_batches, "stages": stages}
