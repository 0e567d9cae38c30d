"""What this library needs of DistributedDataParallel beyond its public interface."""

from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.parts.torch_private import check_can_set, check_has

WHAT = "DistributedDataParallel"

# Attributes in torch 2.9 to 2.14, which DDP itself sets at every forward.
_SET = ("require_forward_param_sync", "_has_rebuilt_buckets")


def check_ddp_internals(model: DistributedDataParallel) -> None:
    """Raise if DDP lacks what the adapters set or call.

    Raises:
        UnsupportedError: names the version of torch and what is missing.
    """
    check_can_set(model, _SET, WHAT)
    check_has(model, ("reducer", "broadcast_buffers", "find_unused_parameters", "static_graph"), WHAT)
    check_has(model.reducer, ("_reset_state",), f"{WHAT}, whose buckets have to be forgotten after an error,")
