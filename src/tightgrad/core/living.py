"""Objects that are alive, by their class."""

import gc
from typing import Any


def instances(kind: type) -> list[Any]:
    """Return all objects of a class and of those derived from it, which the garbage collector knows.

    They are looked for among what refers to the classes, as each object does to its own (0.1 s in a large program; the
    more derived classes, the longer). A list of all objects would hold tuples that other threads are in the middle of
    building, and those would end in a SystemError.
    """
    kinds = _with_derived(kind)
    return [one for one in gc.get_referrers(*kinds) if type(one) in kinds]


def _with_derived(kind: type) -> set[type]:
    return {kind}.union(*map(_with_derived, type.__subclasses__(kind)))
