"""Does each gradient become ready once in a backward that DistributedDataParallel reduces?

DDP reduces a gradient when it is ready for the first time. What reentrant checkpointing of a layer that is used twice,
or a second backward over the same graph, adds later stays on its rank, and DDP says nothing (torch 2.13).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from tightgrad.core.errors import UsageError

_SHOWN = 3


@contextmanager
def ready_once(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Hold around forward and backward.

    Args:
        parameters: by name.

    Raises:
        UsageError: at the end, if a gradient became ready more than once.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    ready: set[str] = set()
    twice: list[str] = []

    def note(parameter: Tensor) -> None:
        name = names[id(parameter)]
        if name in ready:
            twice.append(name)
        ready.add(name)

    with ExitStack() as hooks:
        for parameter in parameters.values():
            if parameter.requires_grad:
                hooks.enter_context(parameter.register_post_accumulate_grad_hook(note))
        yield
    if twice:
        raise UsageError(grew_late(sorted(set(twice))))


def grew_late(names: list[str]) -> str:
    """Say what is wrong with gradients that grew after they had been handed over, and what to do."""
    return (
        f"the gradients of {', '.join(map(repr, names[:_SHOWN]))} went on growing after they had been reduced, since "
        "they became ready twice: reentrant checkpointing (use_reentrant=True) of a layer that is used more than once "
        "does that, or a second backward over one graph (retain_graph=True). Take use_reentrant=False, or add the "
        "losses before one backward; or let attach() reduce after it, with "
        'compress=tg.Compress(..., overlap="none").'
    )
