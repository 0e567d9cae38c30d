"""A checkpoint's state is read and checked against a pipeline before anything changes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tightgrad.checkpoint.folder import check_same_ranks, load_on_every_rank
from tightgrad.checkpoint.save_folder import Newest
from tightgrad.checkpoint.state import PipelineState
from tightgrad.core.protocols import Adapter
from tightgrad.core.types import Slot


def load_matching(
    folder: Path, slots: Mapping[str, Slot], adapter: Adapter, check_more: Callable[[Mapping[str, Any], Newest], None]
) -> dict[str, Any]:
    """Read this rank's state of the newest complete checkpoint. Collective: every rank must call it.

    Args:
        folder: shared by all ranks.
        slots: what the plan remembers.
        adapter: the model's adapter.
        check_more: is given the state and which checkpoint it is from, and raises a `TightGradError` where it does not
            fit in another way.

    Raises:
        CheckpointError: on every rank, if any rank's file is missing or damaged, or there is none.
        StateMismatchError: the same, where the state does not fit this rank's plan and model.
    """
    shapes = adapter.remembered_shapes

    def check(state: Mapping[str, Any], found: Newest) -> None:
        by_rank = [name for name, slot in slots.items() if slot.across_ranks == "sum" and state["slots"].get(name)]
        if shapes is not None and by_rank:
            check_same_ranks(folder, found.world_size, adapter.collective.world_size)
        check_more(state, found)  # first: a model that has changed is named as such, and not by its residuals
        PipelineState(shapes).load_state_dict(state, adapter.parameters, slots)

    return load_on_every_rank(folder, slots, adapter.collective, check)
