"""The API reference: a page for each public module, with every public name of it."""

import importlib
import inspect
import pkgutil
import types
from typing import Any

import tightgrad

COLLECTIVE = "all_reduce_ all_gather start_all_gather all_to_all split broadcast_"
FAMILIES = ("clip", "codecs", "reducers", "feedback", "scaling", "collectives", "records", "dcp", "testing")
INTEGRATIONS = ("accelerate", "lightning", "transformers")
TITLES = {
    "tightgrad": "tightgrad: the way in, plans, errors",
    "tightgrad.clip": "tightgrad.clip: clippers",
    "tightgrad.codecs": "tightgrad.codecs: codecs",
    "tightgrad.reducers": "tightgrad.reducers: how payloads are summed",
    "tightgrad.feedback": "tightgrad.feedback: what compression leaves behind",
    "tightgrad.scaling": "tightgrad.scaling: learning rates of large batches, loss scales",
    "tightgrad.collectives": "tightgrad.collectives: ranks",
    "tightgrad.records": "tightgrad.records: what a step writes",
    "tightgrad.dcp": "tightgrad.dcp: state for torch.distributed.checkpoint",
    "tightgrad.testing": "tightgrad.testing: the conformance suite",
}

CALLED = {
    "GradientPipeline": {
        "windows and micro-batches": "windows backward skip set_micro_batches",
        "the step and its record": "step run run_cached flush",
        "after an error, and at the end": "abandon leave close",
        "state": "state_dict load_state_dict save load wait_for_save",
        "looking in": "optimizer worst",
    },
    "CommHook": {"": "num_backwards wire_bytes residual_norm state_dict load_state_dict save load"},
    "OuterPipeline": {"": "step outer_step state_dict load_state_dict save load"},
    "Plan": {"": "to_json from_json to_config from_config"},
    "StepRecord": {"": "to_dict"},
    "NoiseScale": {"": "initial updated value"},
    "SingleCollective": {"": COLLECTIVE},
    "ThreadedCollective": {"": COLLECTIVE},
    "TorchCollective": {"": COLLECTIVE},
    "RecordWriter": {"": "start begin write failed close"},
    "TightAccelerator": {"": "prepare accumulate backward clip_grad_norm_ clip_grad_value_ pipe"},
    "TightGrad": {"": "pipe"},
    "TightTrainer": {"": "pipe"},
}
"""What users call of a class, by group; a group without a name has no heading.

What only the library calls (a codec's `encode`, a plan's `slots`) is left out: such a class is documented by its
settings.
"""

AUTHORS = {
    "protocols": "Clipper Codec Feedback GradNorm Reduce ReduceContext Reducer",
    "types": "Clipped Grads GradSpec Payload Reduced Slot State TensorLayout",
    "wire": "checked_tensors",
    "check": "check_choice check_integer check_number",
    "clock": "StageClock",
    "rng": "StepRng",
}
"""What authors of methods import, and call in tests, by module of `tightgrad.core`; `MethodCard` is in `tightgrad`."""

SHORT = {"GradientPipeline": "pipe", "OuterPipeline": "outer"}
"""What the object is called in the examples of this site: users search for `pipe.skip`."""

FIRST_IN_SEARCH = ("---", "search: {boost: 2.5}", "---", "")
"""A name that is searched for is looked up: its reference comes before pages that mention it."""


def public_modules() -> list[str]:
    """Return the modules whose names users import, in the order of the reference."""
    found = ["tightgrad", *(f"tightgrad.{name}" for name in FAMILIES)]
    return found + [f"tightgrad.integrations.{name}" for name in integrations()]


def integrations() -> list[str]:
    """Return the names of the integrations: the modules of that package with public names of their own."""
    package = importlib.import_module("tightgrad.integrations")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return [name for name in INTEGRATIONS if name in names]


def public_names(module: str) -> list[str]:
    """Return the public names of a module; other modules, which have pages of their own, are not among them.

    Raises:
        ModuleNotFoundError: an integration's library is not installed.
    """
    found = tightgrad.dcp if module == "tightgrad.dcp" else importlib.import_module(module)
    listed = getattr(found, "__all__", None)
    names = listed if listed is not None else [name for name in vars(found) if _is_own(found, name)]
    own = [name for name in names if not isinstance(getattr(found, name), types.ModuleType)]
    return sorted((name for name in own if not name.startswith("_")), key=lambda name: (_order(found, name), name))


def _is_own(module: types.ModuleType, name: str) -> bool:
    """Tell whether a module without `__all__` gives this name its public home.

    The `__init__` of a package imports what it offers; a single module offers what it defines.
    """
    value = getattr(module, name)
    home = str(getattr(value, "__module__", ""))
    if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
        return False
    return home.startswith("tightgrad.") if hasattr(module, "__path__") else home == module.__name__


def _order(module: types.ModuleType, name: str) -> int:
    value: Any = getattr(module, name)
    if inspect.isclass(value):
        return 2 if issubclass(value, Exception) else 1
    return 0


def file_of(module: str) -> str:
    """Return the name of a module's page below docs/."""
    return f"reference/{module.removeprefix('tightgrad.').replace('.', '-')}.md"


def pages() -> dict[str, str]:
    """Return the pages by name."""
    found = {file_of(module): _page(module) for module in public_modules()}
    return found | {"reference/core.md": _authors_page(), "reference/index.md": _index()}


def _authors_page() -> str:
    lines = [*FIRST_IN_SEARCH, "# tightgrad.core: what a method of your own is made of", ""]
    lines += [
        "A codec, clipper, reducer or feedback of your own imports these names, as in [the guide](../own-codec.md).",
        "",
    ]
    lines += ["Its card is a [`MethodCard`](tightgrad.md#tightgrad.MethodCard).", ""]
    for module, names in AUTHORS.items():
        lines += [
            f"## tightgrad.core.{module}",
            "",
            f"`from tightgrad.core.{module} import {names.replace(' ', ', ')}`",
            "",
        ]
        for name in names.split():
            path = f"tightgrad.core.{module}.{name}"
            lines += _directive(path, path, 3)
            lines[-1:] = [f"      members: {_written_by_authors(path)}", ""]
    return "\n".join(lines)


def _written_by_authors(path: str) -> list[str]:
    """Return what a class lets its subclasses define, and what they call of it."""
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    own = vars(found).items() if inspect.isclass(found) else ()
    return [member for member, value in own if not member.startswith("_") and inspect.getdoc(value) and _is_code(value)]


def _is_code(value: object) -> bool:
    return inspect.isfunction(value) or isinstance(value, property | classmethod)


def _page(module: str) -> str:
    lines = [*FIRST_IN_SEARCH, f"# {TITLES.get(module, module)}", ""]
    try:
        names = public_names(module)
    except ModuleNotFoundError as error:
        return "\n".join([*lines, f"Needs {error.name}, which is not installed where this page was built.", ""])
    own_import = module.startswith("tightgrad.integrations.")
    if own_import:
        lines += [f"Imported by its own name: `from {module} import ...`.", ""]
    for name in names:
        written = f"{module}.{name}"  # as users write it, after `import tightgrad as tg`
        lines += _directive(written, written if own_import else written.replace("tightgrad", "tg", 1), 3)
        for group, called in CALLED.get(name, {}).items():
            lines += [f"#### {name}: {group}", ""] if group else []
            for member in called.split():
                short = f", {SHORT[name]}.{member}" if name in SHORT else ""
                lines += _directive(f"{module}.{name}.{member}", f"{name}.{member}{short}", 5 if group else 4)
    return "\n".join(lines)


def _directive(path: str, heading: str, level: int) -> list[str]:
    return [f"::: {path}", "    options:", f'      heading: "{heading}"', f"      heading_level: {level}", ""]


def _index() -> str:
    lines = ["# API reference", "", "Every public name, by the module that it is imported from.", ""]
    lines += ["| Module | Names |", "|---|---|"]
    for module in public_modules():
        page = file_of(module).removeprefix("reference/")
        try:
            names = ", ".join(f"[`{name}`]({page}#{module}.{name})" for name in public_names(module))
        except ModuleNotFoundError as error:
            names = f"needs {error.name}"
        lines.append(f"| [`{module}`]({page}) | {names} |")
    for module, written in AUTHORS.items():
        path = f"tightgrad.core.{module}"
        names = ", ".join(f"[`{name}`](core.md#{path}.{name})" for name in written.split())
        lines.append(f"| [`{path}`](core.md), for methods of your own | {names} |")
    return "\n".join([*lines, ""])
