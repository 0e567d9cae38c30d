"""What a process group runs on: its backend on each kind of device, and its time-out."""

from datetime import timedelta

import torch
import torch.distributed as dist

from tightgrad.core.errors import CommunicationError


def backends(group: dist.ProcessGroup | None = None) -> dict[str, str]:
    """Return the backends of a group by type of device, such as {"cpu": "gloo", "cuda": "nccl"}.

    `torch.distributed.get_backend` only repeats what the user wrote: "undefined" after `init_process_group()` without a
    backend, which is torch's default, or "cpu:gloo,cuda:nccl".

    Args:
        group: None takes the default group.
    """
    pairs = [pair.split(":", 1) for pair in dist.get_backend_config(group).split(",")]
    return {pair[0]: pair[1] for pair in pairs}


def backend_name(device: torch.device, group: dist.ProcessGroup | None = None) -> str:
    """Return the name of the backend that sends tensors of `device`, such as "gloo".

    Args:
        device: where the tensors are.
        group: None takes the default group.

    Raises:
        CommunicationError: the group has no backend for such tensors.
    """
    found = backends(group)
    if device.type not in found:
        raise CommunicationError(
            f"the process group sends tensors of {' and '.join(found)} only, not of {device.type}; call "
            f'init_process_group("...,{device.type}:<backend>") with a backend for {device.type}, or move the model.'
        )
    return found[device.type]


def control_device(group: dist.ProcessGroup) -> torch.device:
    """Return where small tensors that the host looks at should be: the CPU wherever the group reaches it."""
    found = backends(group)
    if "cpu" in found:
        return torch.device("cpu")
    if "cuda" in found:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(next(iter(found)))


def timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """Return how long a collective of the group may wait; None where its backend does not say.

    `_get_backend` and `options._timeout` are private, and torch has no public way to ask (2.9 to 2.13). Under
    TORCH_DISTRIBUTED_DEBUG=DETAIL the backend is inside a wrapper.
    """
    backend = group._get_backend(control_device(group))
    backend = getattr(backend, "wrapped_pg", backend)
    timeout = getattr(getattr(backend, "options", None), "_timeout", None)
    return timeout if isinstance(timeout, timedelta) else None


def derived_group(parent: dist.ProcessGroup, ranks: list[int]) -> dist.ProcessGroup:
    """Make a group of some of a group's ranks, with its backends and its time-out. Collective: only `ranks` call it.

    Args:
        parent: the group to take settings from.
        ranks: global ranks, this one among them.
    """
    name = dist.get_backend(parent)
    group = dist.new_group(
        ranks,
        timeout=timeout_of(parent),
        backend=dist.get_backend_config(parent) if name == "undefined" else name,
        use_local_synchronization=True,
    )
    assert isinstance(group, dist.ProcessGroup)
    return group


def gloo_group(parent: dist.ProcessGroup) -> dist.ProcessGroup:
    """Make a group of a group's ranks that sends tensors of the CPU, for a thread of its own, with the same time-out.
    Collective: only these ranks call it.
    """
    ranks = dist.get_process_group_ranks(parent)
    group = dist.new_group(ranks, timeout=timeout_of(parent), backend="gloo", use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)
    return group
