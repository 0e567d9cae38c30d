"""A small GPT on Shakespeare's plays, one optimizer step for each batch, in phases that differ in batch and rate.

Batches are cut into micro-batches and accumulated where they are larger than one. All trainings of a seed draw the same
pieces of text in the same order, whatever their batch.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad_lab.common import byte_model
from tightgrad_lab.training.files import finite

HELD_OUT = 0.1
"""Share of the text, at its end, on which the loss is measured."""
TEST_SEED, TEST_PIECES = 999_999, 128
MICRO_BATCH = 64
WIDTH, LAYERS = 64, 2
BETA1 = 0.9


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one batch size.

    Args:
        batch: pieces of text of one step.
        pieces: of text in all.
        learning_rate: of AdamW at its beginning.
        beta2: of AdamW.
        end_rate: at its end, reached along a line; None keeps the rate.
    """

    batch: int
    pieces: int
    learning_rate: float
    beta2: float
    end_rate: float | None = None

    @property
    def steps(self) -> int:
        """Whole steps; what does not fill one is left out."""
        return self.pieces // self.batch


class Training:
    """A model, its optimizer and its stream of text; a copy goes on from the same place with the same text."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model: nn.Module = byte_model.ByteTransformer(WIDTH, LAYERS)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.0)
        self.generator = torch.Generator().manual_seed(seed)

    def branch(self) -> "Training":
        """Return a copy that does not touch this one."""
        own = copy.copy(self)
        own.model = copy.deepcopy(self.model)
        own.optimizer = torch.optim.AdamW(own.model.parameters(), weight_decay=0.0)
        own.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        own.generator = torch.Generator()
        own.generator.set_state(self.generator.get_state())
        return own

    def run(self, phase: Phase, marks: tuple[float, ...] = (1.0,)) -> float | None:
        """Train through a phase.

        Args:
            phase: what to do.
            marks: shares of the phase after which the held-out loss is measured.

        Returns:
            The mean of the held-out losses at the marks in nats, or None if one is not finite.
        """
        micro_batch = min(phase.batch, MICRO_BATCH)
        at = {max(1, round(mark * phase.steps)) for mark in marks}
        plan = tg.Plan(accumulate=tg.Accumulate(phase.batch // micro_batch), guard=tg.Guard("propagate"))
        for group in self.optimizer.param_groups:
            group["betas"] = (BETA1, phase.beta2)
        pipe = tg.attach(self.model, self.optimizer, plan, weight=len)
        losses = []
        for step, window in enumerate(pipe.windows(self._batches(phase, micro_batch)), start=1):
            for group in self.optimizer.param_groups:
                group["lr"] = _rate(phase, step - 1)
            for pieces in window:
                pipe.backward(byte_model.loss(self.model, pieces))
            pipe.step()
            if step in at:
                losses.append(self.held_out_loss())
        pipe.close()
        return finite(fmean(losses))

    def _batches(self, phase: Phase, micro_batch: int) -> Iterator[Tensor]:
        """Pieces of text, drawn one by one, so that every batch size sees the same."""
        text, _ = _texts()
        for _ in range(phase.steps * phase.batch // micro_batch):
            yield torch.cat([byte_model.cut(text, 1, self.generator) for _ in range(micro_batch)])

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean cross entropy of the next byte in text that is not trained on, in nats."""
        generator = torch.Generator().manual_seed(TEST_SEED)
        return float(byte_model.loss(self.model, byte_model.cut(_texts()[1], TEST_PIECES, generator)))


def _texts() -> tuple[Tensor, Tensor]:
    """What is trained on, and what is held out."""
    text = byte_model.plays()
    end = round(len(text) * (1 - HELD_OUT))
    return text[:end], text[end:]


def _rate(phase: Phase, step: int) -> float:
    if phase.end_rate is None:
        return phase.learning_rate
    return phase.learning_rate + (phase.end_rate - phase.learning_rate) * (step + 0.5) / phase.steps


def text_facts() -> dict[str, int]:
    """Return what the text and the model are, for a result's figure."""
    train, held_out = _texts()
    count = sum(parameter.numel() for parameter in byte_model.ByteTransformer(WIDTH, LAYERS).parameters())
    return {
        "parameters": count,
        "bytes_of_piece": byte_model.CONTEXT,
        "train_bytes": len(train),
        "held_out_bytes": len(held_out),
        "test_pieces": TEST_PIECES,
    }
