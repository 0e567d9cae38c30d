"""From a model's adapter and a plan to what sums gradients over ranks."""

from collections.abc import Callable
from typing import Any

from tightgrad.adapters.fsdp2 import FSDP2Adapter
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import Adapter
from tightgrad.plan.plan import Resolved
from tightgrad.sync.after_backward import AfterBackward
from tightgrad.sync.by_wrapper import ByFSDP2, ByWrapper
from tightgrad.sync.ddp_buckets import DDPBuckets
from tightgrad.sync.fsdp2_shards import FSDP2Nodes, FSDP2Shards
from tightgrad.sync.protocol import GradientSync

_HANDED_OVER: dict[str, Callable[[Adapter, Any, Resolved, int, StageClock], GradientSync]] = {
    "buckets": DDPBuckets,
    "units": FSDP2Shards,
    "nodes": FSDP2Nodes,
}


def make_sync(adapter: Adapter, plan: Resolved, seed: int, clock: StageClock) -> GradientSync:
    """Choose what sums gradients over ranks."""
    if adapter.hand_over is not None:
        return _HANDED_OVER[adapter.hand_over.kind](adapter, adapter.hand_over, plan, seed, clock)
    if isinstance(adapter, FSDP2Adapter):
        return ByFSDP2(adapter)
    return ByWrapper() if adapter.reduces else AfterBackward(adapter, plan, seed, clock)
