"""What all ranks have to have alike in a window: packed into one number, which travels with the count of its weights.

Each part but the number of steps has a few bits of a hash, in which a difference may be missed. The hash changes with
the step, so that a difference that stays is told a window later. One number for all keeps the message short.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_BITS = {"written": 1, "steps": 12, "settings": 16, "frozen": 8, "modes": 8, "modules": 8}
"""53 together: what a float64 holds exactly."""

_WRITTEN = "written"
"""A part that may differ; weights are then compared at the step."""

_MAY_BE_UNKNOWN = ("modes", "modules")
"""Parts of which 0 says that a rank does not know: it had no micro-batch."""

_WORDS = {
    "frozen": (
        "has other frozen parameters (requires_grad=False) than rank {first}, so a parameter that only some ranks "
        "have frozen would get no gradient from their batches. Freeze the same parameters on every rank, between the "
        "same two windows"
    ),
    "modes": (
        "had modules in another mode (train() or eval()) than rank {first} in the previous window, so dropout and "
        "normalisation differed there. Call model.train() on every rank before the next forward, also on a rank that "
        "alone runs an evaluation"
    ),
    "modules": (
        "called other fully_shard modules than rank {first} in the previous window, or called them in another order. "
        "Weights are gathered from all ranks when a module is called, so parts of different modules may have been "
        "mixed, and that window's step may be wrong. Load the last checkpoint, and call the same modules in the same "
        "order on every rank"
    ),
}


@dataclass(frozen=True, slots=True)
class Alike:
    """Holds what this rank has.

    Args:
        rate: the first learning rate.
        number: from `packed`.
        here: says what this rank has of a part, for an error.
    """

    rate: float = 0.0
    number: float = 0.0
    here: Callable[[str], str] = lambda part: ""


NOTHING = Alike()


def packed(
    *, steps: int, settings: int, frozen: int, modes: int | None, modules: int | None, written: bool = False
) -> float:
    """Return one number for all parts.

    Args:
        steps: applied so far.
        settings: a hash of the optimizers' settings.
        frozen: a hash of which parameters are frozen.
        modes: a hash of the modules' modes in the window before; None if there was none.
        modules: a hash of the modules that were called in the window before; None if that is not known.
        written: whether something else than a step has written to weights since the last one.
    """
    parts = {
        _WRITTEN: int(written),
        "steps": steps % (1 << _BITS["steps"]),
        "settings": hash((steps, settings)) % (1 << _BITS["settings"]),
        "frozen": hash((steps, frozen)) % (1 << _BITS["frozen"]),
        "modes": 0 if modes is None else 1 + hash((steps, modes)) % ((1 << _BITS["modes"]) - 1),
        "modules": 0 if modules is None else 1 + hash((steps, modules)) % ((1 << _BITS["modules"]) - 1),
    }
    number = 0
    for name, bits in _BITS.items():
        number = (number << bits) | parts[name]
    return float(number)


def difference(numbers: Sequence[float]) -> str | None:
    """Return the first part that differs over ranks, as far as it is known there; None where nothing does."""
    if len(set(numbers)) == 1:
        return None
    return next((part for part in _BITS if part != _WRITTEN and len(set(_known(part, numbers))) > 1), None)


def written_on_some(numbers: Sequence[float]) -> bool:
    """Tell whether weights were written on some ranks, and not on others."""
    return len(set(_of(_WRITTEN, numbers))) > 1


def _of(part: str, numbers: Sequence[float]) -> list[int]:
    names = list(_BITS)
    below = sum(_BITS[name] for name in names[names.index(part) + 1 :])
    return [(int(number) >> below) % (1 << _BITS[part]) for number in numbers]


def _known(part: str, numbers: Sequence[float]) -> list[int]:
    return [number for number in _of(part, numbers) if number or part not in _MAY_BE_UNKNOWN]


def parted(part: str, numbers: Sequence[float], here: str) -> str:
    """Say that ranks differ in a part of the model.

    Args:
        part: from `difference`.
        numbers: of each rank, from `packed`.
        here: what this rank has.
    """
    found = _of(part, numbers)
    known = [rank for rank, number in enumerate(found) if number or part not in _MAY_BE_UNKNOWN]
    others = ", ".join(str(rank) for rank in known if found[rank] != found[known[0]])
    return f"the ranks differ: rank {others} {_WORDS[part].format(first=known[0])}. {here}"


def steps_parted(numbers: Sequence[float]) -> str:
    """Say that ranks have applied different numbers of steps."""
    modulo = 1 << _BITS["steps"]
    shown = ", ".join(f"{number} on rank {rank}" for rank, number in enumerate(_of("steps", numbers)))
    return (
        f"the ranks have applied different numbers of steps (modulo {modulo}: {shown}), so their weights differ. "
        "Either a rank left a window after its last backward, because of an error, and the others stepped, or the "
        "ranks loaded different checkpoints. Load the same checkpoint on every rank. If the loop catches errors, catch "
        "them around the whole window, and let all ranks know before any of them goes on."
    )


def settings_parted(rates: Sequence[float], numbers: Sequence[float]) -> str:
    """Say that ranks' optimizers have other settings."""
    settings = _of("settings", numbers)
    others = ", ".join(str(rank) for rank, number in enumerate(settings) if number != settings[0])
    shown = ", ".join(f"{rate:g} on rank {rank}" for rank, rate in enumerate(rates))
    what = (
        f"learning rate {shown}"
        if len(set(rates)) > 1
        else "weight decay, betas, momentum, another setting or a later rate"
    )
    return (
        f"the optimizer of rank {others} has other settings than that of rank 0 ({what}), so the next step would "
        "make the ranks' weights differ. No weight has been changed yet. Step schedulers on every rank "
        "equally often, or give them to attach(..., scheduler=scheduler), and change settings on every rank between "
        "the same two windows."
    )
