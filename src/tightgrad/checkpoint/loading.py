"""A checkpoint's state is read and checked against a pipeline before anything changes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tightgrad.checkpoint.folder import check_same_ranks, load_on_every_rank
from tightgrad.checkpoint.state import PipelineState
from tightgrad.core.protocols import Adapter
from tightgrad.core.types import Slot


def load_matching(
    folder: Path, slots: Mapping[str, Slot], adapter: Adapter, check_plan: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Read this rank's state of the newest complete checkpoint. Collective: every rank must call it.

    Args:
        folder: shared by all ranks.
        slots: what the plan remembers.
        adapter: the model's adapter.
        check_plan: raises `StateMismatchError` where a state does not fit the plan in another way.

    Raises:
        CheckpointError: on every rank, if any rank's file is missing or damaged, or there is none.
        StateMismatchError: the same, where the state does not fit this rank's plan and model.
    """
    shapes = adapter.remembered_shapes

    def check(state: Mapping[str, Any], saved_size: int) -> None:
        if shapes is not None:
            check_same_ranks(folder, saved_size, adapter.collective.world_size)
        PipelineState(shapes).load_state_dict(state, adapter.parameters, slots)
        check_plan(state)

    return load_on_every_rank(folder, slots, adapter.collective, check)
