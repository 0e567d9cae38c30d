"""Peers that may hang or die: a few attempts, each with ranks in processes of their own."""

import json
from collections.abc import Callable
from typing import Any

from tightgrad_lab.experiments.fragile import outcomes


def first_finished(
    world_size: int, body: Callable[..., str], *args: Any, seconds: float, attempts: int = 3
) -> tuple[Any, list[str]]:
    """What rank 0's `body` returned as JSON, of the first of a few attempts that did not hang or die; all outcomes."""
    tried: list[str] = []
    for _ in range(attempts):
        results = outcomes(world_size, body, *args, seconds=seconds)
        if all(result.startswith(("[", "{")) for result in results):
            return json.loads(results[0]), tried
        tried += results
    return None, tried
