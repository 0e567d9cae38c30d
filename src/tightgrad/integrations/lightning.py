"""Lightning: the same module and trainer, with `TightGrad` among the callbacks.

    trainer = Trainer(callbacks=[TightGrad(plan, weight=num_tokens)], accumulate_grad_batches=8, gradient_clip_val=1.0)
    trainer.fit(module, loader)

`accumulate_grad_batches` and `gradient_clip_val` become part of the plan. The training loader fetches a window at a
time, so that the weights of all its micro-batches are known before the first backward. Works with one device,
DDPStrategy and ModelParallelStrategy (FSDP2), with automatic optimization, and with manual optimization that calls
`manual_backward` once for each batch; `optimizer.step()` then does nothing but at the end of a window, and
`optimizer.zero_grad()` nothing in it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor, optim

from tightgrad.accumulate.weights import Weight
from tightgrad.checkpoint.rank_file import serialized
from tightgrad.checkpoint.save_folder import LATEST, file_name, folder_name
from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.core.protocols import Collective
from tightgrad.integrations.foreign import ForeignLoop
from tightgrad.integrations.lightning_checks import OWN_LOOP, check_supported, full_plan
from tightgrad.integrations.lightning_hooks import StepHooks
from tightgrad.pipeline.attach import attach
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.plan.plan import Plan


class TightGrad(Callback):
    """Puts a plan on the model and the one optimizer that a trainer fits. Every rank must have it.

    Args:
        plan: what to run. Without `accumulate` and `clip` of its own it takes those of the trainer.
        weight: what a batch counts, as for `tightgrad.attach`; None counts samples.
        seed: of all random numbers that methods draw.

    Raises:
        ConfigError: when fitting begins, if the plan's micro-batches are not `accumulate_grad_batches`.
        UnsupportedError: then, for several optimizers or loaders, or a precision with a scaler of its own.
    """

    def __init__(self, plan: Plan | None = None, *, weight: Weight | None = None, seed: int = 0) -> None:
        self.plan = self._given = plan or Plan()
        self.loop: ForeignLoop | None = None
        self._weight = weight
        self._seed = seed
        self._lots: deque[list[Any]] = deque()
        self._held = ExitStack()
        self._saved: dict[str, Any] | None = None
        self._hooks: StepHooks | None = None
        self._batch = 0
        self._ran_backward = False

    @property
    def pipe(self) -> GradientPipeline:
        """The pipeline, from the beginning of `fit`."""
        assert self.loop is not None
        return self.loop.pipe

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the trainer's loaders."""
        if stage != "fit":
            return
        check_supported(trainer, pl_module)
        self.plan = full_plan(self._given, trainer, pl_module)
        process = trainer.strategy.process_dataloader
        trainer.strategy.process_dataloader = lambda loader: self._by_windows(trainer, process(loader))

    @property
    def _steps(self) -> int:
        assert self.plan.accumulate is not None
        assert isinstance(self.plan.accumulate.micro_batches, int)
        return self.plan.accumulate.micro_batches

    def _by_windows(self, trainer: Trainer, loader: Any) -> Any:
        if trainer.state.stage is not RunningStage.TRAINING:
            return loader
        return _Windowed(loader, self._steps, self._lots, lambda: trainer.num_training_batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the plan; load what a checkpoint holds."""
        if len(trainer.optimizers) != 1:
            raise UnsupportedError(
                f"TightGrad takes one optimizer, but configure_optimizers gives {len(trainer.optimizers)}; put their "
                f"parameters into groups of one optimizer, or {OWN_LOOP}."
            )
        loaders = trainer.train_dataloader
        if not isinstance(loaders, _Windowed):
            raise UnsupportedError(
                f"TightGrad takes one training loader, not a {type(loaders).__name__} of several; let one DataLoader "
                "give what training_step needs."
            )
        pipe = attach(trainer.strategy.model, trainer.optimizers[0], self.plan, weight=self._weight, seed=self._seed)
        self.loop = ForeignLoop(pipe)
        self._hooks = StepHooks(trainer, pl_module, self.loop)
        self._hooks.install()
        if self._saved is not None:
            _load(pipe, self._saved)
            self._saved = None
        trainer.strategy.backward = self._backward_of(trainer, pl_module)
        trainer.strategy.optimizer_step = self._optimizer_step_of(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open a window at its first batch, and hold the micro-batch."""
        assert self.loop is not None
        if trainer.fit_loop._skip_backward:  # StochasticWeightAveraging only renews BatchNorm's statistics
            return
        if not self.loop.is_open:
            self._check_steps(trainer, pl_module)
            self.loop.open(self._lots.popleft())
        self._batch, self._ran_backward = batch_idx, False
        self._held.enter_context(self.loop.micro_batch())

    def _check_steps(self, trainer: Trainer, module: LightningModule) -> None:
        if module.automatic_optimization and trainer.accumulate_grad_batches != self._steps:
            raise UsageError(
                f"trainer.accumulate_grad_batches was changed to {trainer.accumulate_grad_batches} while training, but "
                f"the plan has {self._steps} micro-batches for the whole fit. Call fit once for each number, or "
                f"{OWN_LOOP}."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the micro-batch go; drop the window if the module's own `optimizer_step` has left the step out."""
        self._held.close()
        if self.loop is None or not self.loop.is_open:
            return
        if not self.loop.is_last:
            self._check_backward(pl_module)
        elif pl_module.automatic_optimization:
            self.loop.abandon()
        else:
            raise UsageError(
                f"optimizer.step() was not called in training_step for batch {self._batch}, where a window of "
                f"{self._steps} batches ends. Call it after every manual_backward(loss), without a condition such as "
                "`if (batch_idx + 1) % K == 0:` and without dividing the loss by K: it waits for the window's last "
                "batch. Pass TightGrad(Plan(accumulate=Accumulate(micro_batches=K)))."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the window of an epoch that was left early."""
        self._close()

    def _check_backward(self, module: LightningModule) -> None:
        if not self._ran_backward:
            how = "training_step returned None" if module.automatic_optimization else "manual_backward was not called"
            raise UsageError(
                f"{how} for batch {self._batch}, whose weight counts in its window already. Leave such batches out in "
                "the DataLoader, or run backward on their loss and pass a weight that gives 0 for them."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the open window after an error."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the strategy its own methods back."""
        self._close()
        if self._hooks is not None:
            self._hooks.remove()
        if self.loop is not None:
            self.pipe.close()
        for name in ("backward", "optimizer_step", "process_dataloader"):
            trainer.strategy.__dict__.pop(name, None)

    def _close(self) -> None:
        self._held.close()
        self._lots.clear()
        if self.loop is not None:
            self.loop.abandon()

    def _backward_of(self, trainer: Trainer, module: LightningModule) -> Callable[..., Tensor]:
        def backward(loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
            assert self.loop is not None
            assert self._hooks is not None
            if args or kwargs:
                given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
                raise UnsupportedError(
                    f"manual_backward(loss, {given}) takes the loss alone with TightGrad; add the losses of a batch "
                    "and call it once."
                )
            if self.loop.pipe.adapter.reduces and self.loop.is_last:
                trainer.strategy.pre_backward(loss)
            # Lightning has divided by its number of batches, which the pipeline's weights do better.
            scale = trainer.accumulate_grad_batches if module.automatic_optimization else 1
            self._ran_backward = True
            with self._hooks.around_backward(loss) as taken:
                self.loop.pipe.backward(taken * scale)
            return loss

        return backward

    def _optimizer_step_of(self, module: LightningModule) -> Callable[..., Any]:
        def optimizer_step(optimizer: optim.Optimizer, closure: Callable[[], Any], model: Any = None, **_: Any) -> Any:
            result = closure()
            assert self.loop is not None
            if self.loop.is_last:
                self._check_backward(module)
                self.loop.step()
            return result

        return optimizer_step

    def state_dict(self) -> dict[str, Any]:
        """The pipeline's state of all ranks. Collective: every rank must call it, as saving a checkpoint does."""
        if self.loop is None:
            return self._saved or {}
        state, collective = self.pipe.state_dict(), self.pipe.adapter.collective
        own = serialized(state, collective.rank, collective.world_size)
        return {"step": int(state["step"]), "ranks": _gathered(own, collective)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the plan is attached."""
        self._saved = dict(state_dict) if state_dict else None


class _Windowed:
    """A loader that fetches a window at a time, and tells which batches belong together."""

    def __init__(self, loader: Any, steps: int, lots: deque[list[Any]], limit: Callable[[], float]) -> None:
        self._loader = loader
        self._steps = steps
        self._lots = lots
        self._limit = limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        self._lots.clear()
        batches, fetched = iter(self._loader), 0
        while True:
            lot: list[Any] = []
            while len(lot) < self._steps and fetched < self._limit():
                try:
                    lot.append(next(batches))
                except StopIteration:
                    break
                fetched += 1
            if not lot:
                return
            self._lots.append(lot)
            yield from lot


def _gathered(own: bytes, collective: Collective) -> list[Tensor]:
    """Every rank's bytes, uint8."""
    device = collective.control_device
    sizes = collective.all_gather(torch.tensor([len(own)], device=device)).view(-1).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    rows = collective.all_gather(padded.to(device)).cpu()
    return [row[:size].clone() for row, size in zip(rows, sizes, strict=True)]


def _load(pipe: GradientPipeline, saved: dict[str, Any]) -> None:
    """Through files, as `load` reads them: it knows how to hand residuals over to another number of ranks."""
    ranks = saved["ranks"]
    with TemporaryDirectory() as root:
        folder = Path(root) / folder_name(int(saved["step"]))
        folder.mkdir()
        for rank, blob in enumerate(ranks):
            (folder / file_name(rank, len(ranks))).write_bytes(blob.cpu().numpy().tobytes())
        (Path(root) / LATEST).write_text(f"{folder.name} {len(ranks)}")
        pipe.load(root)
