"""Private attributes of torch: looked for when a model is attached, and set only where they are plain attributes.

What torch keeps to itself changes with its versions: a name goes away, or becomes a property that cannot be set. A
model is refused by name then, before the first step, instead of an AttributeError in the middle of one.
"""

from collections.abc import Iterable

import torch

from tightgrad.core.errors import UnsupportedError

KNOWN = "torch 2.9 to 2.14"


def check_has(owner: object, names: Iterable[str], what: str) -> None:
    """Raise if an object of torch lacks any of these attributes.

    Args:
        owner: a module, or one of torch's own objects.
        names: attributes that are read or called.
        what: what needs them, as the subject of a sentence.

    Raises:
        UnsupportedError: names the version of torch and the attribute.
    """
    for name in names:
        if not hasattr(owner, name):
            raise unknown_torch(f"{type(owner).__name__} has no {name}", what)


def check_can_set(owner: object, names: Iterable[str], what: str) -> None:
    """Raise if any of these attributes is not the object's own, such as a property without a setter.

    Raises:
        UnsupportedError: names the version of torch and the attribute.
    """
    for name in names:
        if not can_set(owner, name):
            raise unknown_torch(f"{type(owner).__name__} keeps no {name} that could be set", what)


def can_set(owner: object, name: str) -> bool:
    """Return whether an attribute lies in the object itself. A property never does, nor does what torch has dropped."""
    return name in getattr(owner, "__dict__", {})


def unknown_torch(found: str, what: str) -> UnsupportedError:
    """Return the error for a version of torch that is built otherwise than this library knows."""
    return UnsupportedError(
        f"{what} cannot run on torch {torch.__version__}: {found}. It is known to run on {KNOWN}; install one of these "
        "(pip install 'torch<2.15'), or take another wrapper."
    )
