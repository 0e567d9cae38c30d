"""Other people's clippers, as far as they are installed: ZClip, AutoClip, timm's AGC.

timm's norm clipping is `torch.nn.utils.clip_grad_norm_` itself, which everything is measured against.
"""

import importlib
import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType
from typing import Any

from torch import nn

Step = Callable[[list[nn.Parameter], float], object]


def clip_peers() -> tuple[dict[str, Callable[[], Step]], list[str]]:
    """Makers of fresh peers by name, and the distributions that are missing."""
    makers: dict[str, Callable[[], Step]] = {}
    missing = []
    for name, make in (("zclip", _zclip), ("autoclip", _autoclip), ("timm", _timm_agc)):
        try:
            makers[f"peer: {name} {distribution(name).version}"] = make
        except PackageNotFoundError:
            missing.append(name)
    return makers, missing


def _zclip() -> Step:
    made = importlib.import_module("zclip").ZClip(warmup_steps=2, max_grad_norm=None)

    def step(parameters: list[nn.Parameter], max_norm: float) -> None:
        made.max_grad_norm = max_norm
        made.step(nn.ParameterList(parameters))

    return step


def _autoclip() -> Step:
    """A quantile of past norms; torch's clip on top of it. It knows no max_norm."""
    quantile_clip = importlib.import_module("autoclip.torch").QuantileClip
    made: list[Any] = []

    def step(parameters: list[nn.Parameter], max_norm: float) -> None:
        if not made:
            made.append(quantile_clip(parameters, quantile=0.1, history_length=1000, global_threshold=True))
        made[0].step()

    return step


def _timm_agc() -> Step:
    agc = _timm_file("utils/agc.py")
    return lambda parameters, max_norm: agc.adaptive_clip_grad(parameters)


def _timm_file(path: str) -> ModuleType:
    """One module of timm on its own: the package as a whole needs a torchvision that fits torch."""
    spec = importlib.util.spec_from_file_location("timm_agc", str(distribution("timm").locate_file(f"timm/{path}")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
