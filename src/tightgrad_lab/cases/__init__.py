"""Case studies by name. Each is a module with `VARIANTS`, cases by name, the default first, and with `FULL`, the names
of those that `--full` trains. A new case adds its name here.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tightgrad_lab.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tightgrad_lab.training.case import AnyCase

CASES = ("image", "text", "translation", "series")


def check_case(name: str) -> str:
    """Return `name` if there is such a case.

    Raises:
        ArgumentError: there is none.
    """
    if name not in CASES:
        raise ArgumentError(f"no case study is named {name!r}; choose from: {', '.join(CASES)}.")
    return name


def load_case(name: str, variant: str = "") -> "AnyCase":
    """Import a case study: one of its variants, the default if none is named.

    Raises:
        ArgumentError: there is no such case, or it has no such variant.
    """
    variants = _variants(name)
    if not variant:
        return next(iter(variants.values()))
    if variant not in variants:
        raise ArgumentError(f"{name} has no variant {variant!r}; choose from: {', '.join(variants)}.")
    return variants[variant]


def default_variant(name: str) -> str:
    """The variant that is trained in all eight combinations if nothing else is asked for."""
    return next(iter(_variants(name)))


def embedded_variants(name: str) -> tuple[str, ...]:
    """The variants that need nothing but the package, the default first."""
    full = full_variants(name)
    return tuple(variant for variant in _variants(name) if variant not in full)


def full_variants(name: str) -> tuple[str, ...]:
    """The variants of the full settings; the first is trained in all eight combinations."""
    full: tuple[str, ...] = _module(name).FULL
    return full


def _variants(name: str) -> "Mapping[str, AnyCase]":
    variants: Mapping[str, AnyCase] = _module(name).VARIANTS
    return variants


def _module(name: str) -> Any:
    return importlib.import_module(f"tightgrad_lab.cases.{check_case(name)}")
