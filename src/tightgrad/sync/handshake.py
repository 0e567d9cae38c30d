"""Before the first step, ranks compare what they are about to do."""

import hashlib
import platform
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from tightgrad.core.errors import RankMismatchError
from tightgrad.core.protocols import Collective
from tightgrad.plan.local_updates import LocalUpdates
from tightgrad.plan.plan import Plan


def check_ranks_agree(
    plan: Plan | LocalUpdates,
    parameters: Mapping[str, nn.Parameter],
    seed: int,
    collective: Collective,
    version: str,
    *,
    loss_scale: str = "none",
    optimizers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Compare a digest of plan, parameters, seed, loss scale, optimizers and versions. Collective: every rank must call
    it.

    Raises:
        RankMismatchError: on every rank, naming the part that differs and the ranks.
    """
    layout = [(name, tuple(p.shape), str(p.dtype)) for name, p in parameters.items()]
    parts = {
        "plan": plan.to_json(),
        "parameters": repr(layout),
        "seed": repr(seed),
        "loss scale": loss_scale,
        **optimizers,
        "versions": f"tightgrad {version}, torch {torch.__version__}, python {platform.python_version()}",
    }
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in parts.values())
    mine = torch.frombuffer(bytearray(digests), dtype=torch.uint8).to(collective.control_device)
    table = collective.all_gather(mine).cpu().view(collective.world_size, len(parts), -1)
    different = {
        part: [rank for rank in range(collective.world_size) if not torch.equal(table[rank, index], table[0, index])]
        for index, part in enumerate(parts)
    }
    problems = [f"{part} differ on rank {', '.join(map(str, ranks))}" for part, ranks in different.items() if ranks]
    if problems:
        here = "; ".join(f"{part} here: {parts[part][:200]}" for part, ranks in different.items() if ranks)
        raise RankMismatchError(
            f"the ranks do not agree: {'; '.join(problems)} (compared with rank 0). Rank {collective.rank} has {here}. "
            "Give every rank the same plan, model, seed, loss scale, optimizers and versions."
        )
