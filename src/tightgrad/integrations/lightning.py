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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from tightgrad.accumulate.weights import Weight
from tightgrad.adapters.parts.fsdp2_torch import sharded_root
from tightgrad.checkpoint.rank_file import serialized
from tightgrad.checkpoint.save_folder import LATEST, file_name, folder_name
from tightgrad.collectives.gather_with_grad import gather_rows
from tightgrad.core.errors import CheckpointError, UnsupportedError, UsageError
from tightgrad.core.notices import warn
from tightgrad.integrations.external_loop import ExternalLoop, check_same_number, check_takes_loss_alone
from tightgrad.integrations.lightning_checks import (
    OWN_LOOP,
    check_asks_for_sum,
    check_clips_as_planned,
    check_supported,
    full_plan,
)
from tightgrad.integrations.lightning_hooks import StepHooks
from tightgrad.pipeline.attach import attach
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.plan.plan import Plan
from tightgrad.records import RecordWriter


class TightGrad(Callback):
    """Puts a plan on the model that a trainer fits, and on its optimizer; on several in manual optimization, where they
    are one step. Every rank must have it.

    Args:
        plan: what to run. Without `accumulate` and `clip` of its own it takes those of the trainer.
        weight: what a batch counts, as for `tightgrad.attach`; None counts samples.
        seed: of all random numbers that methods draw.
        records: writers of the steps' records, as for `tightgrad.attach`.

    Raises:
        ConfigError: when fitting begins, if the plan's micro-batches are not `accumulate_grad_batches`.
        UnsupportedError: then, for several loaders, or a precision with a scaler of its own.

    Examples:
        >>> from tightgrad.integrations.lightning import TightGrad
        >>> import tightgrad as tg
        >>> callback = TightGrad(tg.Plan(clip=tg.clip.GlobalNorm(1.0)), weight=lambda batch: len(batch))
        >>> callback.plan.clip.max_norm  # with Trainer(callbacks=[callback], accumulate_grad_batches=8)
        1.0
    """

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        weight: Weight | None = None,
        seed: int = 0,
        records: Sequence[RecordWriter] = (),
    ) -> None:
        self.plan = self._given = plan or Plan()
        self.loop: ExternalLoop | None = None
        self._settings: dict[str, Any] = {"weight": weight, "seed": seed, "records": records}
        self._held = ExitStack()
        self._saved: dict[str, Any] | None = None
        self._hooks: StepHooks | None = None
        self._full: int | None = None
        self._batch = 0

    @property
    def pipe(self) -> GradientPipeline:
        """Return the pipeline, from the beginning of `fit`."""
        return self._running.pipe

    @property
    def _running(self) -> ExternalLoop:
        assert self.loop is not None
        return self.loop

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the trainer's loaders."""
        if stage != "fit":
            return
        check_supported(trainer, pl_module)
        self.plan = full_plan(self._given, trainer, pl_module)
        process = trainer.strategy.process_dataloader

        def process_dataloader(loader: Any) -> Any:
            processed = process(loader)
            is_trained = trainer.state.stage is RunningStage.TRAINING
            return _Windowed(processed, lambda: trainer.num_training_batches) if is_trained else processed

        trainer.strategy.process_dataloader = process_dataloader

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the plan, and stand in for the strategy's backward and step."""
        if not trainer.optimizers:
            raise UnsupportedError("configure_optimizers gives no optimizer; return one, or drop this callback.")
        _windowed(trainer)
        self._hooks = hooks = StepHooks(trainer, pl_module)

        def attached() -> GradientPipeline:
            settings = {**self._settings, "before_clip": hooks.before_clip}
            # Lightning's pages call fully_shard on a part of the module, which has all its parameters.
            pipe = attach(sharded_root(trainer.strategy.model), trainer.optimizers, self.plan, **settings)
            hooks.serve(pipe)
            return pipe

        self.loop = ExternalLoop(attached, "Call self.optimizers().step(), without use_pl_optimizer=False.")
        if trainer.ckpt_path is not None and self._saved is None and trainer.global_step > 0:
            self.loop.tell_nothing_saved(str(trainer.ckpt_path))
        hooks.install(self.loop)
        trainer.strategy.backward = partial(self._backward, trainer, pl_module)
        trainer.strategy.optimizer_step = partial(self._optimizer_step, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare how many batches the ranks have: Lightning sends a message before each of them."""
        if trainer.world_size > 1:
            how = "use_distributed_sampler=False, or a sampler of your own"
            instead = "Give every rank the same number of batches."
            check_same_number(trainer.num_training_batches, 1, self.pipe.adapter.collective, how, instead)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open a window at its first batch, and hold the micro-batch. Before the first window, load what a checkpoint
        holds: its parameters are unfrozen by now.
        """
        loop, loader = self._running, _windowed(trainer)  # which may be another in each epoch
        if trainer.fit_loop._skip_backward:  # StochasticWeightAveraging only renews BatchNorm's statistics
            loader.window(1)
            return
        check_clips_as_planned(self._given, self.plan, trainer, pl_module)
        full = self._full_window(trainer, pl_module)
        if self._saved is not None:
            loop.take_in_new_parameters()
            _load(self.pipe, self._saved)
            self._saved = None
            if loop.num_done and not hasattr(loader, "load_state_dict"):
                self._drop_done(loop)
            elif pl_module.automatic_optimization and batch_idx % full and not loop.num_done:
                self._tell_short(batch_idx % full, full)
        if loop.window is None:
            done = batch_idx % full if pl_module.automatic_optimization else loop.num_done
            left = trainer.num_training_batches - batch_idx  # not all, where a fit goes on in the middle of an epoch
            loop.open(loader.window(int(min(full - done, left))), full)
        self._batch = batch_idx
        self._held.enter_context(loop.micro_batch())

    def _drop_done(self, loop: ExternalLoop) -> None:
        if self.pipe.adapter.collective.rank == 0:
            warn(
                f"the checkpoint was taken after {loop.num_done} batches of a window, and the loader, which has no "
                "state_dict(), does not go on with the others: the gradients of those are dropped, and the next step "
                "has fewer batches. Take a loader with state (torchdata's StatefulDataLoader), or save after steps: a "
                "val_check_interval that is a multiple of accumulate_grad_batches.",
                1,
            )
        self.pipe.state.open_window = None

    def _tell_short(self, done: int, full: int) -> None:
        if self.pipe.adapter.collective.rank == 0:
            warn(
                f"the fit goes on after {done} of the {full} batches that make one step, and the checkpoint has no "
                "gradients of these. If an error or an interrupt ended the fit that saved it, they are left out, and "
                "the next step has fewer batches; if accumulate_grad_batches was smaller then, they may have been "
                "stepped already.",
                1,
            )

    def _full_window(self, trainer: Trainer, module: LightningModule) -> int:
        """The number of batches that make a step; Lightning counts them from the beginning of the epoch."""
        if not module.automatic_optimization:
            assert self.plan.accumulate is not None
            return self.plan.accumulate.micro_batches_at(self.pipe.state.step) or 1
        number: int = trainer.accumulate_grad_batches
        if self._full not in (None, number):
            raise UsageError(
                f"trainer.accumulate_grad_batches was changed from {self._full} to {number} in the middle of an epoch. "
                "Change it between epochs, with GradientAccumulationScheduler or in on_train_epoch_start; or "
                f"{OWN_LOOP} and pipe.set_micro_batches({number})."
            )
        self._full = number
        return number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the micro-batch go; drop the window if the module's own `optimizer_step` has left the step out."""
        self._held.close()
        loop = self.loop
        if loop is None or loop.window is None:
            if loop is not None:
                loop.check_all_asked()
            return
        if loop.is_last and (pl_module.automatic_optimization or not loop.num_backwards):
            loop.abandon()
            return
        self._check_backward(pl_module)
        if loop.is_last:
            raise UsageError(
                f"optimizer.step() was not called in training_step for batch {self._batch}, where a window of "
                f"{len(loop.window)} batches ends. Call it after every manual_backward(loss), without a condition such "
                "as `if (batch_idx + 1) % K == 0:` and without dividing the loss by K: it waits for the window's last "
                "batch. Pass TightGrad(Plan(accumulate=Accumulate(micro_batches=K)))."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the window of an epoch that was left early, and tell of it."""
        self._close("the epoch was left")

    def _check_backward(self, module: LightningModule) -> None:
        if self._running.num_backwards < self._running.position:
            how = "training_step returned None" if module.automatic_optimization else "manual_backward was not called"
            raise UsageError(
                f"{how} for batch {self._batch}, whose weight counts in its window already. Leave such batches out in "
                "the DataLoader, or run backward on their loss and pass a weight that gives 0 for them; in manual "
                "optimization write self.manual_backward(loss) for loss.backward()."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the open window after an error, and give everything back: Lightning tears nothing down then."""
        try:
            self._close()
        finally:
            self._give_back(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the strategy its own methods back."""
        try:
            self._close()
        finally:
            self._give_back(trainer)

    def _give_back(self, trainer: Trainer) -> None:
        if self._hooks is not None and self.loop is not None:
            self._hooks.remove()
            self.loop.close()
        for name in ("backward", "optimizer_step", "process_dataloader"):
            trainer.strategy.__dict__.pop(name, None)

    def _close(self, why: str = "") -> None:
        if self.loop is not None and why:
            self.loop.tell_of_drop(why)
        # Left as after an error: what is checked at the end of a whole micro-batch is not to be asked of this one.
        self._held.__exit__(GeneratorExit, GeneratorExit(), None)
        self._full = None
        if self.loop is not None:
            self.loop.abandon()

    def _backward(
        self, trainer: Trainer, module: LightningModule, loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """In the place of the strategy's."""
        assert self._hooks is not None
        check_takes_loss_alone(args, kwargs)
        if self._running.window is None:
            raise UsageError(
                f"manual_backward(loss) came after the step of batch {self._batch}: TightGrad takes one step for a "
                f"batch, or for several. Add the losses of a batch and step once; or {OWN_LOOP}."
            )
        if self.pipe.adapter.every_rank_runs and self._running.is_last:
            check_asks_for_sum(trainer, module)
            trainer.strategy.pre_backward(loss)
        # Lightning has divided by its number of batches, which the pipeline's weights do better.
        scale = trainer.accumulate_grad_batches if module.automatic_optimization else 1
        with self._hooks.around_backward(loss) as taken:
            self.pipe.backward(taken * scale)
        return loss

    def _optimizer_step(
        self, module: LightningModule, optimizer: Any, closure: Callable[[], Any], model: Any = None, **_: Any
    ) -> Any:
        """In the place of the strategy's."""
        result = closure()
        if self._running.has_stepped(optimizer):
            return result
        if self._running.window is None and not module.automatic_optimization:
            raise UsageError(f"optimizer.step() was called twice for batch {self._batch}; call it once.")
        if self._running.is_last:
            self._check_backward(module)
            self._running.step(optimizer)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the pipeline's state of all ranks. Collective: every rank must call it, as in saving a checkpoint."""
        if self.loop is None or self._saved is not None:
            return self._saved or {}
        state, collective = self.pipe.state_dict(), self.pipe.adapter.collective
        own = bytearray(serialized(state, collective.rank, collective.world_size))
        rows, sizes = gather_rows(torch.frombuffer(own, dtype=torch.uint8).to(collective.control_device), collective)
        return {"step": int(state["step"]), "ranks": [part.clone() for part in rows.cpu().split(sizes)]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the first batch."""
        self._saved = dict(state_dict) if state_dict else None


class _Windowed:
    """A loader that reads ahead when a window begins, so that all of its batches are known. The state of one with
    `state_dict` (torchdata's) is that after the batch that is trained on, not after the last one that was read.
    """

    def __init__(self, loader: Any, limit: Callable[[], float]) -> None:
        self._loader = loader
        self._limit = limit
        self._place: Any = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["_loader"], name)
        return (lambda: found() if self._place is None else self._place) if name == "state_dict" else found

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        self._source, self._num_read = iter(self._loader), 0
        self._to_yield, self._to_open = deque[Any](), deque[Any]()
        while self._to_yield or self._read():
            batch, self._place = self._to_yield.popleft()
            yield batch
        self._place = None

    def _read(self) -> bool:
        if self._num_read >= self._limit():
            return False
        for batch in self._source:
            self._num_read += 1
            place = self._loader.state_dict() if hasattr(self._loader, "state_dict") else None
            self._to_yield.append((batch, place))
            self._to_open.append(batch)
            return True
        return False

    def window(self, most: int) -> list[Any]:
        """Return the next window's batches, beginning with the one that is trained on now."""
        while len(self._to_open) < most and self._read():
            pass
        return [self._to_open.popleft() for _ in range(min(most, len(self._to_open)))]


def _windowed(trainer: Trainer) -> _Windowed:
    loader = trainer.train_dataloader
    if not isinstance(loader, _Windowed):
        raise UnsupportedError(
            f"TightGrad takes one training loader, not a {type(loader).__name__} of several; let one DataLoader give "
            "what training_step needs."
        )
    return loader


def _load(pipe: GradientPipeline, saved: dict[str, Any]) -> None:
    """Through files, as `load` reads them: it knows how to hand residuals over to another number of ranks."""
    ranks = saved["ranks"]
    with TemporaryDirectory() as root:
        folder = Path(root) / folder_name(int(saved["step"]))
        folder.mkdir()
        for rank, blob in enumerate(ranks):
            (folder / file_name(rank, len(ranks))).write_bytes(blob.cpu().numpy().tobytes())
        (Path(root) / LATEST).write_text(f"{folder.name} {len(ranks)}")
        try:
            pipe.load(root)
        except CheckpointError as error:
            raise CheckpointError(f"TightGrad's part of the trainer's checkpoint cannot be loaded: {error}") from None
