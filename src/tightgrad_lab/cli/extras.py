"""Which extra of this package brings a module that is missing, by the package's own metadata."""

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires

OWN = ("tightgrad", "tightgrad_lab")
MODULES = {"tensorflow_cpu": "tensorflow", "mkdocs_material": "material"}  # those named otherwise than their package
_REQUIREMENT = re.compile(r"""([\w.-]+)[^;]*;.*\bextra == ["']([\w-]+)["']""")


def how_to_install(module: str | None) -> str | None:
    """One line that says what to install; None if `module` is not another package's.

    Args:
        module: its full name, as on a `ModuleNotFoundError`.
    """
    top = (module or "").partition(".")[0]
    if not top or top in OWN:
        return None
    try:
        extra = extra_with(top, requires("tightgrad") or ())
    except PackageNotFoundError:  # run from its source, not installed
        extra = None
    if extra is None:
        return f"{top} is not installed, and this command needs it: pip install {top}"
    return (
        f"{top} is not installed, and this command needs it: pip install 'tightgrad[{extra}]' (in a checkout: "
        f"pip install '.[{extra}]')"
    )


def extra_with(module: str, requirements: Iterable[str]) -> str | None:
    """The smallest extra among `requirements`, written as in a package's metadata, that brings `module`."""
    extras: dict[str, set[str]] = {}
    for requirement in requirements:
        found = _REQUIREMENT.match(requirement)
        if found is not None:
            package = found[1].lower().replace("-", "_")
            extras.setdefault(found[2], set()).add(MODULES.get(package, package))
    having = [(len(modules), extra) for extra, modules in extras.items() if module.lower() in modules]
    return min(having)[1] if having else None
