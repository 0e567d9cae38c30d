"""The same optimizer steps cut into micro-batches of any size, on one process or several, and what they cost.

Every step takes the same pieces of text, whatever the micro-batch and however many ranks share them.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad_lab.bench.accumulate import lingering
from tightgrad_lab.bench.sent import sent_nbytes
from tightgrad_lab.common import byte_model
from tightgrad_lab.training.memory import peak_memory
from tightgrad_lab.training.ranks import Rank, Send

WRAPPERS = ("single", "ddp", "fsdp2 last", "fsdp2 every")
MEMORY_STEPS = 2
"""The optimizer's state exists from the first step on, so the second holds everything at once."""
WARM_UP = 1
Steps = Iterator[nn.Module]


@dataclass(frozen=True)
class Work:
    """What is trained.

    Args:
        wrapper: one of WRAPPERS; what follows "fsdp2" is when gradients are reduced.
        micro_batch: pieces of text of one backward of one rank.
        effective_batch: pieces of text of an optimizer step of all ranks.
        width: of the transformer.
        layers: of the transformer.
        seed: of the weights and of the text.
    """

    wrapper: str
    micro_batch: int
    effective_batch: int
    width: int
    layers: int
    seed: int = 0

    def micro_batches(self, ranks: int) -> int:
        """K, on each of `ranks` ranks.

        Raises:
            ValueError: the effective batch is no multiple of what the ranks take at once.
        """
        at_once = self.micro_batch * ranks
        if self.effective_batch % at_once:
            raise ValueError(f"an effective batch of {self.effective_batch} is no multiple of {at_once}.")
        return self.effective_batch // at_once

    def model(self) -> nn.Module:
        """The transformer in its wrapper, with the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = byte_model.ByteTransformer(self.width, self.layers)
        if self.wrapper == "ddp":
            return DistributedDataParallel(model)
        if self.wrapper.startswith("fsdp2"):
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for layer in model.encoder.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        return model


def micro_batches(work: Work, rank: int, ranks: int) -> Iterator[Tensor]:
    """This rank's micro-batches, without end: int64, shape (micro_batch, CONTEXT + 1) each."""
    generator = torch.Generator().manual_seed(work.seed)
    while True:
        pieces = byte_model.batch(work.effective_batch, generator)
        yield from pieces.chunk(ranks)[rank].split(work.micro_batch)


def train(work: Work) -> Steps:
    """The model after every optimizer step. With several ranks, every rank must call it."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = work.model()
    optimizer = torch.optim.AdamW(model.parameters(), byte_model.LEARNING_RATE)
    sync = "every" if work.wrapper.endswith("every") else "last"
    plan = tg.Plan(accumulate=tg.Accumulate(work.micro_batches(ranks), sync=sync))
    pipe = tg.attach(model, optimizer, plan, weight=len)  # all pieces are equally long
    for window in pipe.windows(micro_batches(work, rank, ranks)):
        for pieces in window:
            pipe.backward(byte_model.loss(model, pieces))
        pipe.step()
        yield model


def memory_of(work: Work) -> int:
    """Most bytes of live tensors on the CPU while training, everything included."""
    byte_model.plays()
    with lingering():
        return peak_memory(lambda: _few(work), torch.device("cpu"))


def _few(work: Work) -> None:
    for _, _model in zip(range(MEMORY_STEPS), train(work), strict=False):
        pass


def fixed_nbytes(work: Work) -> int:
    """Bytes of weights, gradients and AdamW's two moments: what no micro-batch is small enough to save."""
    return sum(4 * parameter.nbytes for parameter in work.model().parameters())


def measure_times(rank: Rank, send: Send, works: Sequence[Work], rounds: int) -> None:
    """Send for each work its seconds of each round, the bytes rank 0 sends in a step, and the parameters at the end.

    In each round every work takes one step, in an order that changes. Collective.
    """
    torch.set_num_threads(1)
    running = [train(work) for work in works]
    for steps in running:
        for _ in range(WARM_UP):
            next(steps)
    seconds: list[list[float]] = [[] for _ in works]
    for index in range(rounds):
        order = [(place + index) % len(works) for place in range(len(works))]
        for place in order:
            dist.barrier()
            start = time.perf_counter()
            next(running[place])
            seconds[place].append(time.perf_counter() - start)
    for work, steps, taken in zip(works, running, seconds, strict=True):
        sent = sent_nbytes(lambda steps=steps: next(steps), rank.rank, rank.ranks)  # type: ignore[misc]
        final = whole(next(steps))
        if rank.rank == 0:
            send({"work": work, "seconds": taken, "wire_bytes": sent, "weights": final.numpy()})


def whole(model: nn.Module) -> Tensor:
    """All parameters as one vector, gathered where they are sharded. Collective."""
    found = []
    for parameter in model.parameters():
        gathered = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found.append(gathered.detach().flatten())
    return torch.cat(found)


def measure_memory(rank: Rank, send: Send, works: Sequence[Work]) -> None:
    """Send the peak of rank 0 of each work. Collective."""
    torch.set_num_threads(1)
    for work in works:
        peak = memory_of(work)
        if rank.rank == 0:
            send(peak)


def measure_both(rank: Rank, send: Send, works: Sequence[Work], rounds: int, measured: Sequence[Work]) -> None:
    """`measure_times`, then `measure_memory`, on the same ranks."""
    measure_times(rank, send, works, rounds)
    measure_memory(rank, send, measured)


def timed(seconds: Sequence[float]) -> tuple[float, list[float]]:
    """The median of a step's seconds, and its quartiles."""
    first, _, third = statistics.quantiles(seconds) if len(seconds) > 1 else [seconds[0]] * 3
    return statistics.median(seconds), [first, third]
