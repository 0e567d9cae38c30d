"""What `import tightgrad` gives, and what it does not do."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
import types

import pytest

import tightgrad as tg

MODULES = [name for _, name, _ in pkgutil.walk_packages(tg.__path__, "tightgrad.")]
FAMILIES = {"accumulate", "adapters", "clip", "codecs", "collectives", "feedback", "reducers", "scaling"}


def test_all_is_sorted_and_is_what_is_public():
    public = [
        name
        for name, value in vars(tg).items()
        if not name.startswith("_") and (not isinstance(value, types.ModuleType) or name in tg.__all__)
    ]
    assert tg.__all__ == sorted(tg.__all__)
    assert set(tg.__all__) - {"__version__"} == set(public)


@pytest.mark.parametrize("name", sorted(set(tg.__all__) - {"__version__"}))
def test_everything_public_says_what_it_is(name):
    assert getattr(tg, name).__doc__


@pytest.mark.parametrize("name", sorted(set(tg.__all__) & FAMILIES))
def test_families_name_their_methods_once(name):
    family = getattr(tg, name)
    ids = [value.card.id for value in vars(family).values() if isinstance(value, type) and hasattr(value, "card")]
    assert len(ids) == len(set(ids))
    assert ids or name in ("collectives", "scaling")


@pytest.mark.parametrize("name", ["tightgrad", *MODULES])
def test_doctests(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if name.startswith("tightgrad.integrations.") and not str(error.name).startswith("tightgrad"):
            pytest.skip(f"{error.name} is not installed")
        raise
    assert module.__doc__, f"{name} does not say what it is"
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_the_way_in_has_an_example():
    assert ">>>" in tg.attach.__doc__


LEAN = """
import sys, threading
import torch
before = set(sys.modules)
state = torch.get_rng_state()
num_threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
import tightgrad
assert not torch.distributed.is_initialized(), "a process group was made"
assert not torch.cuda.is_initialized(), "CUDA was initialised"
assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
assert (torch.get_num_threads(), torch.get_default_dtype()) == (num_threads, dtype)
assert threading.active_count() == 1, "a thread was started"
heavy = {"matplotlib", "typer", "rich", "jinja2", "psutil", "platformdirs", "tightgrad_lab", "transformers",
         "accelerate", "lightning", "pandas", "torchvision", "triton", "torch._inductor",
         "sympy", "torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint"}
loaded = sorted(name for name in heavy if name in sys.modules and name not in before)
assert not loaded, loaded
"""


def test_importing_is_lean():
    done = subprocess.run([sys.executable, "-W", "error", "-c", LEAN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
