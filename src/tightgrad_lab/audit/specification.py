"""What an audited file says: a model, micro-batches, the loss that is meant, and the loop as its author writes it."""

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from tightgrad_lab.errors import ArgumentError

CALLS: dict[str, tuple[str, ...]] = {
    "build_model": (),
    "make_batches": ("count", "ragged"),
    "loss": ("model", "batch"),
    "train": ("model", "batches"),
}
"""How an audited file's functions are called."""
REQUIRED = tuple(CALLS)
PRECISIONS = ("float32", "bfloat16", "float16")
PARTIALS = ("flush", "drop", "carry")

_DISTRIBUTED = re.compile(
    r"distributed|\bdist\b|world_size|WORLD_SIZE|LOCAL_RANK|get_rank|[Aa]ccelerat|[Ll]ightning|[Ff]abric|Trainer|tightgrad|"
    "fully_shard|all_reduce"
)


@dataclass(frozen=True)
class Specification:
    """A loaded file.

    Attributes:
        build_model: gives a fresh model; called after seeding, so that all ranks draw the same weights.
        make_batches: (count, ragged) -> that many micro-batches; with `ragged`, their weights differ.
        loss: (model, micro-batch) -> its mean loss and the weight that it is averaged over. What is meant.
        train: (model, micro-batches of this rank) -> None. The loop that is audited.
        k: micro-batches of one step as the file says it, before the audit says another; 0 if it does not accumulate.
        module: the file, whose ACCUMULATE, MAX_NORM and EPOCHS are set for each scenario.
        accumulates: whether the file has ACCUMULATE: micro-batches of one optimizer step.
        clips: whether the file has MAX_NORM: the loop clips the global 2-norm to it.
        precision: of the loop: how closely it is compared.
        partial: what the loop means to do with the last window of an epoch if it is shorter: "flush", "drop", or
            "carry" it over to the next epoch.
        epochs: whether the file has EPOCHS: how often `train` goes over its micro-batches.
        ranks: numbers of local ranks that the loop is meant for; None if the file does not say.
        alone: whether the file's text names nothing of torch.distributed or of a framework that starts it.
    """

    build_model: Callable[[], nn.Module]
    make_batches: Callable[[int, bool], list[Any]]
    loss: Callable[[nn.Module, Any], tuple[Tensor, Tensor | float]]
    train: Callable[[nn.Module, list[Any]], None]
    module: ModuleType
    k: int
    accumulates: bool
    clips: bool
    precision: str
    partial: str
    epochs: bool
    ranks: tuple[int, ...] | None
    alone: bool


def load(path: Path) -> Specification:
    """Import an audited file.

    Raises:
        ArgumentError: it cannot be imported, or lacks a part; the message says which.
    """
    if not path.is_file():
        raise ArgumentError(f"there is no file {path}; `tightgrad audit --template raw` prints one to start from.")
    spec = importlib.util.spec_from_file_location(f"tightgrad_audited_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ArgumentError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    missing = [name for name in REQUIRED if not callable(getattr(module, name, None))]
    if missing:
        raise ArgumentError(
            f"{path} does not define {', '.join(missing)}; an audited file defines {', '.join(REQUIRED)} (see "
            "`tightgrad audit --template raw`)."
        )
    for name, words in CALLS.items():
        try:
            inspect.signature(getattr(module, name)).bind(*words)
        except TypeError as error:
            raise ArgumentError(
                f"{path}: {name} is called as {name}({', '.join(words)}), and does not take that: {error}."
            ) from error
        except ValueError:  # a built-in function, which does not say
            continue
    return Specification(
        build_model=module.build_model,
        make_batches=module.make_batches,
        loss=module.loss,
        train=module.train,
        module=module,
        k=k if isinstance(k := getattr(module, "ACCUMULATE", 0), int) else 0,
        accumulates=hasattr(module, "ACCUMULATE"),
        clips=getattr(module, "MAX_NORM", None) is not None,
        precision=_one_of(path, module, "PRECISION", PRECISIONS),
        partial=_one_of(path, module, "PARTIAL", PARTIALS),
        epochs=hasattr(module, "EPOCHS"),
        ranks=_ranks(path, module),
        alone=_DISTRIBUTED.search(path.read_text(encoding="utf-8")) is None,
    )


def _ranks(path: Path, module: ModuleType) -> tuple[int, ...] | None:
    value = getattr(module, "RANKS", None)
    if value is None:
        return None
    found = tuple(value) if isinstance(value, tuple | list | str) else (value,)
    if not found or not all(isinstance(one, int) and one > 0 for one in found):
        raise ArgumentError(f"{path}: RANKS is {value!r}; write numbers of local ranks, such as RANKS = (1, 2).")
    return found


def _one_of(path: Path, module: ModuleType, name: str, allowed: tuple[str, ...]) -> str:
    value = getattr(module, name, allowed[0])
    if value not in allowed:
        raise ArgumentError(f"{path}: {name} is {value!r}; use one of {', '.join(allowed)}.")
    return str(value)
