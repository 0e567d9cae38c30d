"""What stands in the way of a script on local CPU ranks, and the way round it; each is written down.

CUDA names mean the CPU, NCCL means gloo, compiled code is not, loaders have no workers, checkpoints are not written.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader
from torch.utils.data._utils import fetch

from tightgrad_lab.audit.script import schedules
from tightgrad_lab.audit.script.arithmetic import Arithmetic
from tightgrad_lab.audit.script.in_place import InPlace
from tightgrad_lab.audit.script.recorder import Recorder
from tightgrad_lab.audit.script.surroundings import checkpoints, started

Say = Callable[[str], None]
_NO_CUDA = (
    "set_device",
    "synchronize",
    "empty_cache",
    "reset_peak_memory_stats",
    "manual_seed",
    "manual_seed_all",
    "ipc_collect",
    "set_per_process_memory_fraction",
)
_ZERO_CUDA = ("max_memory_allocated", "memory_allocated", "max_memory_reserved", "memory_reserved", "current_device")


class OnCpu(TorchFunctionMode):
    """Every device that is asked for is the CPU."""

    def __init__(self, say: Say, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._say = say
        self._arithmetic = arithmetic

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, on the CPU."""
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func is Tensor.cuda:
            self._say("CUDA: on the CPU")
            return args[0]
        if func is Tensor.pin_memory:
            return args[0]
        if "device" in named:
            named["device"] = self._device(named["device"])
        if func is Tensor.to and len(args) > 1:
            args = (args[0], self._device(args[1]), *args[2:])
        if name in ("is_pinned",):
            return False
        before = self._arithmetic.before(name, args)
        result = func(*args, **named)
        self._arithmetic.watch(name, args, named, result, before)
        return result

    def _device(self, device: Any) -> Any:
        return on_cpu(device, self._say)


def on_cpu(device: Any, say: Say) -> Any:
    """The CPU for every device that a script may name; anything else as it is."""
    if isinstance(device, int) and not isinstance(device, bool):
        device = f"cuda:{device}"
    if _is_device(device) and _kind(device) not in ("cpu", "meta"):
        say(f"{_kind(device)}: on the CPU")
        return torch.device("cpu")
    return device


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (
        isinstance(value, str) and value.partition(":")[0] in ("cuda", "mps", "xpu", "npu", "hpu", "cpu", "meta")
    )


def _kind(device: Any) -> str:
    return device.type if isinstance(device, torch.device) else str(device).partition(":")[0]


def install(recorder: Recorder, say: Say, *, store: str, batches: int | None, cuda: bool) -> None:
    """Change torch for the rest of this process. Before the script is imported.

    Args:
        recorder: told of everything.
        say: told what is changed.
        store: address of the ranks' file store.
        batches: the most that a DataLoader gives in an epoch.
        cuda: whether the script is told that there is CUDA.
    """
    _devices(say, recorder.arithmetic)
    if cuda:
        pretend_cuda(say)
    _ranks(recorder, say, store)
    _compilation(say)
    _loaders(recorder, say, batches)
    checkpoints.install(say)
    _scaler(recorder, say)
    torch.autograd.backward = recorder.around_backward(torch.autograd.backward)  # Tensor.backward calls it by this name
    torch.autograd.grad = recorder.around_grad(torch.autograd.grad)
    clip = recorder.around_clip(nn.utils.clip_grad_norm_)
    nn.utils.clip_grad_norm_ = nn.utils.clip_grad.clip_grad_norm_ = clip
    by_value = recorder.around_value_clip(nn.utils.clip_grad_value_)
    nn.utils.clip_grad_value_ = nn.utils.clip_grad.clip_grad_value_ = by_value
    schedules.install(recorder)
    add = torch.optim.Optimizer.add_param_group

    def add_param_group(self: Any, group: Any) -> None:
        add(self, group)
        recorder.hold(self)

    torch.optim.Optimizer.add_param_group = add_param_group  # type: ignore[method-assign,assignment]
    register_optimizer_step_pre_hook(recorder.before_step)
    register_optimizer_step_post_hook(recorder.after_step)


def _devices(say: Say, arithmetic: Arithmetic) -> None:
    OnCpu(say, arithmetic).__enter__()  # type: ignore[no-untyped-call]  # for as long as this process lives
    for name in _NO_CUDA:
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    for name in _ZERO_CUDA:
        setattr(torch.cuda, name, lambda *args, **kwargs: 0)
    move = nn.Module.to

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        chosen = {name: on_cpu(value, say) if name == "device" else value for name, value in kwargs.items()}
        return move(self, *(on_cpu(one, say) for one in args[:1]), *args[1:], **chosen)

    nn.Module.to = to  # type: ignore[method-assign,assignment]
    nn.Module.cuda = lambda self, device=None: to(self, "cuda")  # type: ignore[method-assign,assignment,return-value]
    init = torch.autocast.__init__

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type != "cpu":
            say(f"autocast on {device_type}: on the CPU, in its own precision")
        init(self, "cpu", *args, **kwargs)

    torch.autocast.__init__ = autocast  # type: ignore[method-assign]
    of_cuda = torch.amp.autocast

    def cuda_autocast(enabled: bool = True, dtype: Any = torch.float16, cache_enabled: bool = True) -> Any:
        return of_cuda("cuda", enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)

    torch.cuda.amp.autocast = cuda_autocast  # type: ignore[assignment,misc]
    wrap = DistributedDataParallel.__init__

    def ddp(
        self: Any, module: nn.Module, device_ids: Any = None, output_device: Any = None, *args: Any, **more: Any
    ) -> None:
        wrap(self, module, None, None, *args, **more)

    DistributedDataParallel.__init__ = ddp  # type: ignore[method-assign]


def pretend_cuda(say: Say) -> None:
    """Let the script's own code, and no library's, believe that there is a GPU for each rank."""
    there = torch.cuda.is_available

    def is_available() -> bool:
        frame = sys._getframe(1)
        if "site-packages" in frame.f_code.co_filename:
            return there()
        say("the script insists on a GPU: it is told that there is one")
        return True

    torch.cuda.is_available = is_available
    torch.cuda.device_count = lambda: int(os.environ.get("WORLD_SIZE", 1))
    torch.cuda.get_device_name = lambda device=None: "cpu"
    torch.cuda.get_device_capability = lambda device=None: (8, 0)


def _ranks(recorder: Recorder, say: Say, store: str) -> None:
    begin = dist.init_process_group

    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> None:
        if backend is not None and "gloo" not in str(backend):
            say(f"{backend}: gloo")
        recorder.elsewhere()
        rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        begin("gloo", init_method=store, rank=rank, world_size=ranks)

    dist.init_process_group = init_process_group
    dist.distributed_c10d.init_process_group = init_process_group

    started.install(say)


def _compilation(say: Say) -> None:
    def compiled(model: Any = None, **kwargs: Any) -> Any:
        say("torch.compile: not compiled")
        return model if model is not None else lambda function: function

    torch.compile = compiled
    nn.Module.compile = lambda self, *args, **kwargs: say("torch.compile: not compiled")  # type: ignore[method-assign]


def _loaders(recorder: Recorder, say: Say, batches: int | None) -> None:
    init, iterate, length = DataLoader.__init__, DataLoader.__iter__, DataLoader.__len__

    def start(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("num_workers"):
            say("workers of a DataLoader: none")
            kwargs["num_workers"] = 0
        for name in ("prefetch_factor", "persistent_workers", "pin_memory", "multiprocessing_context", "timeout"):
            kwargs.pop(name, None)
        init(self, dataset, *args, **kwargs)

    def run(self: Any) -> Any:
        if torch.is_grad_enabled():
            recorder.epoch += 1
            try:
                recorder.batches = len(self)
            except TypeError:  # of a stream
                recorder.batches = None
        found = iterate(self)
        return found if batches is None else _First(found, batches)

    for fetcher in (fetch._MapDatasetFetcher, fetch._IterableDatasetFetcher):
        # torch 2.9 to 2.14: the two that a DataLoader draws a batch with, in the process of its workers too
        setattr(fetcher, "fetch", _marked(fetcher.fetch, recorder.arithmetic.in_place))  # noqa: B010
    DataLoader.__init__ = start  # type: ignore[method-assign]
    DataLoader.__iter__ = run  # type: ignore[method-assign]
    if batches is not None:
        say(f"a DataLoader gives at most {batches} batches in an epoch, as --batches asks")
        DataLoader.__len__ = lambda self: min(batches, length(self))  # type: ignore[method-assign]


def _marked(draw: Callable[..., Any], in_place: InPlace) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        in_place.fetching += 1
        try:
            return draw(*args, **kwargs)
        finally:
            in_place.fetching -= 1

    return run


class _First:
    """The first batches of an iterator; everything else is its own."""

    def __init__(self, found: Any, count: int) -> None:
        self._found, self._left = found, count

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        if self._left <= 0:
            raise StopIteration
        self._left -= 1
        return next(self._found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)


def _scaler(recorder: Recorder, say: Say) -> None:
    whole = torch.amp.GradScaler

    class OnCpuScaler(whole):  # type: ignore[misc,valid-type]
        """A GradScaler on the CPU, whose scale and order of calls are seen."""

        def __init__(self, device: Any = "cuda", *args: Any, **kwargs: Any) -> None:
            if not isinstance(device, str | torch.device):  # torch.cuda.amp's begins with init_scale
                args = (device, *args)
            super().__init__("cpu", *args, **kwargs)
            if self.is_enabled():
                say("GradScaler: on the CPU")

        def scale(self, outputs: Any) -> Any:
            scaled = super().scale(outputs)
            if self.is_enabled() and isinstance(scaled, Tensor):
                scaled._tightgrad_scale = self.get_scale()  # type: ignore[attr-defined]
            return scaled

        def unscale_(self, optimizer: Any) -> None:
            super().unscale_(optimizer)
            if self.is_enabled():
                recorder.unscaled(optimizer, self.get_scale())

        def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            before = len(recorder.ledger.steps)
            result = super().step(optimizer, *args, **kwargs)
            if self.is_enabled() and len(recorder.ledger.steps) == before:
                recorder.skipped(optimizer)
            return result

        def update(self, *args: Any, **kwargs: Any) -> None:
            super().update(*args, **kwargs)
            recorder.rescaled()

    torch.amp.GradScaler = torch.cuda.amp.GradScaler = OnCpuScaler  # type: ignore[misc,assignment]
    torch.amp.grad_scaler.GradScaler = OnCpuScaler  # type: ignore[misc]
