"""The nine failures: real trainings on the embedded data that go wrong in one way each, and a way to mend what no plan
can.
"""

import gc
import math
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import tightgrad as tg
from tightgrad.core.memory import is_out_of_memory
from tightgrad.core.protocols import Collective
from tightgrad.reducers import PowerSGD
from tightgrad_lab.common import byte_model

IMAGES = "fashion_mnist_6k.npz"
BATCH = 64
STEPS = 120
RATE = 0.1
MORE_MEMORY_NBYTES = 32 * 2**20
LARGE_BATCH, LARGE_FROM, LARGE_STEPS = 6000, 20, 3
LARGE_WIDTH = 1536  # 37 MB of activations: more than malloc ever takes from what was freed
LAST = 10
RECURRENT_STEPS = 60
BAD_BATCHES = (60, 90)
WIDTH = 64
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        plan: that is run.
        mended: whether what is wrong in the loop itself is put right.
        seed: of weights and batches.
        steps: to take.
        folder: of the records.
    """

    plan: tg.Plan
    mended: bool
    seed: int
    steps: int
    folder: Path


@dataclass(frozen=True)
class Failure:
    """One way to go wrong.

    Args:
        plan: that goes wrong, or goes with what is wrong in the loop.
        train: runs it, and returns the number by which it is judged.
        metric: what that number is: "loss" (mean of the last steps), "growth" (bytes), "steps" (that were done),
            "difference" (of the ranks' parameter norms, over their size) or "gain" (of the first gradient, over that
            of the whole window's mean loss).
    """

    plan: tg.Plan
    train: Callable[[Run], float]
    metric: str = "loss"


@cache
def images() -> Batch:
    """Pixels in [-0.5, 0.5], shape (n, 784), and labels."""
    with as_file(files("tightgrad_lab") / "data" / IMAGES) as path, np.load(path) as data:
        pixels, labels = data["train_images"], data["train_labels"]
    return torch.from_numpy(pixels).flatten(1).float() / 255 - 0.5, torch.from_numpy(labels).long()


def image_batches(run: Run, size: int = BATCH) -> Iterator[Batch]:
    """Random images."""
    pixels, labels = images()
    generator = torch.Generator().manual_seed(run.seed)
    for _ in range(run.steps):
        chosen = torch.randint(len(labels), (size,), generator=generator)
        yield pixels[chosen], labels[chosen]


def perceptron(seed: int) -> nn.Module:
    """One hidden layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


def classify(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def fit(
    run: Run,
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterator[Any],
    *,
    rate: float = RATE,
    weight: Callable[[Any], float] | None = None,
    after: Callable[[nn.Module, Any], None] = lambda model, batch: None,
    collective: Collective | None = None,
) -> list[tg.StepRecord]:
    """The loop that anyone would write. Errors that training can end with are in the records, and end it here."""
    writer = tg.records.Jsonl(run.folder)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    pipe = tg.attach(model, optimizer, run.plan, weight=weight, seed=run.seed, records=[writer], collective=collective)
    records = []
    last: list[Any] = []

    def loader() -> Iterator[Any]:
        for batch in batches:
            last[:] = [batch]
            yield batch

    try:
        with writer:
            for window in pipe.windows(loader()):
                records.append(pipe.run(window, lambda batch: loss(model, batch)))
                after(model, last[0])
    except (tg.NonFiniteGradientError, RuntimeError) as error:
        if not isinstance(error, tg.NonFiniteGradientError) and not is_out_of_memory(error):
            raise
    return records


def last_loss(records: Sequence[tg.StepRecord]) -> float:
    """The mean of the last steps' losses."""
    losses = [record.loss for record in records[-LAST:] if record.loss is not None]
    return fmean(losses) if losses else math.nan


def over_clipping(run: Run) -> float:
    """The bound is a thousandth of the norm."""
    return last_loss(fit(run, perceptron(run.seed), classify, image_batches(run)))


def idle_clipping(run: Run) -> float:
    """Two batches come with pixels from 0 to 255, and the bound is a million."""

    def batches() -> Iterator[Batch]:
        for place, (pixels, labels) in enumerate(image_batches(run)):
            yield ((pixels + 0.5) * 255, labels) if place in BAD_BATCHES else (pixels, labels)

    return last_loss(fit(run, perceptron(run.seed), classify, batches()))


class PlainRNN(nn.Module):
    """A recurrent network without gates, which reads bytes."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(byte_model.BYTES, width)
        self.recurrent = nn.RNN(width, width, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(width, byte_model.BYTES)
        with torch.no_grad():
            nn.init.orthogonal_(self.recurrent.all_weights[0][1], gain=1.2)

    def forward(self, text: Tensor) -> Tensor:
        """int64 (n, length) to scores (n, length, 256)."""
        scores: Tensor = self.head(self.recurrent(self.embedding(text))[0])
        return scores


def exploding_norms(run: Run) -> float:
    """A recurrent network whose weights stretch what they are given, over 64 bytes, without a clip."""
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    batches = (byte_model.batch(16, generator) for _ in range(min(run.steps, RECURRENT_STEPS)))
    return last_loss(fit(run, PlainRNN(), byte_model.loss, batches, rate=0.2))


def graph_kept_alive(run: Run) -> float:
    """A second forward for the log, whose loss is kept as it is."""
    kept: list[Tensor] = []

    def note(model: nn.Module, batch: Batch) -> None:
        value = classify(model, (batch[0] + 0.01, batch[1]))
        kept.append(value.detach() if run.mended else value)

    records = fit(run, perceptron(run.seed), classify, image_batches(run, 256), after=note)
    nbytes = [record.memory_bytes or 0 for record in records]
    return float(nbytes[-1] - nbytes[len(nbytes) // 5])


@contextmanager
def limited_memory(nbytes: int) -> Iterator[None]:
    """Let this process take at most `nbytes` more than it has."""
    gc.collect()  # what is freed meanwhile would be more room
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def out_of_memory(run: Run) -> float:
    """From some step on batches are 94 times larger, and do not fit into what the process may have."""
    pixels, labels = images()

    def batches() -> Iterator[Batch]:
        for place, batch in enumerate(image_batches(run)):
            yield (pixels[:LARGE_BATCH], labels[:LARGE_BATCH]) if place >= LARGE_FROM else batch

    torch.manual_seed(run.seed)
    narrow = (nn.Linear(784, 32), nn.ReLU())
    model = nn.Sequential(*narrow, nn.Linear(32, LARGE_WIDTH), nn.ReLU(), nn.Linear(LARGE_WIDTH, 10))
    run = replace(run, steps=min(run.steps, LARGE_FROM + LARGE_STEPS))
    # What torch sets up once is not held against the batch: an optimizer alone loads 30 MB of modules.
    classify(model, next(image_batches(run))).backward()
    model.zero_grad()
    tg.attach(model, torch.optim.SGD(model.parameters(), RATE), run.plan).close()
    with limited_memory(MORE_MEMORY_NBYTES):
        return float(len(fit(run, model, classify, batches())))


def precision_lost(run: Run) -> float:
    """A thousandth of the gradient is sent, and the rest forgotten."""
    return last_loss(fit(run, perceptron(run.seed), classify, image_batches(run)))


def stale_warm_start(run: Run) -> float:
    """Images come from two cameras in turn, each of which has its own half of the network's input."""

    def batches() -> Iterator[Batch]:
        for place, (pixels, labels) in enumerate(image_batches(run)):
            nothing = torch.zeros_like(pixels)
            yield torch.cat([nothing, pixels] if place % 2 else [pixels, nothing], dim=1), labels

    torch.manual_seed(run.seed)
    model = nn.Sequential(nn.Linear(2 * 784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    return last_loss(fit(run, model, classify, batches()))


def rank_drift(run: Run) -> float:
    """Two ranks, of which only the first has loaded the checkpoint."""
    norms = [math.nan, math.nan]
    models = [perceptron(run.seed) for _ in range(2)]

    def body(collective: Collective) -> None:
        model = models[collective.rank]
        checkpoint = {name: tensor * 1.1 for name, tensor in model.state_dict().items()}
        if collective.rank == 0 or run.mended:
            model.load_state_dict(checkpoint)
        own = replace(run, seed=1000 * collective.rank + run.seed)
        fit(run, model, classify, image_batches(own, BATCH // 2), collective=collective)
        norms[collective.rank] = float(tg.get_total_norm(list(model.parameters())))

    tg.collectives.run_threaded(2, body)
    return abs(norms[1] - norms[0]) / norms[0]


def num_bytes(text: Tensor) -> float:
    """Bytes that are predicted."""
    return float(text.shape[0] * (text.shape[1] - 1))


def wrong_denominator(run: Run) -> float:
    """Texts of 8 to 64 bytes; the loss is a sum over bytes, and the plan is told that it is a mean."""
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    model = nn.Sequential(nn.Embedding(byte_model.BYTES, 32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 256))

    def batches() -> Iterator[Tensor]:
        for _ in range(2 * run.steps):
            length = int(torch.randint(8, byte_model.CONTEXT, (), generator=generator))
            yield byte_model.batch(4, generator)[:, : length + 1]

    def loss(model: nn.Module, text: Tensor) -> Tensor:
        return byte_model.loss(model, text) * num_bytes(text)

    first = list(islice(batches(), 2))
    sums = sum((loss(model, text) for text in first), start=torch.zeros(()))
    weight = sum(map(num_bytes, first))
    exact = torch.autograd.grad(sums / weight, list(model.parameters()))
    generator.manual_seed(run.seed)
    records = fit(run, model, loss, batches(), rate=0.05, weight=num_bytes)
    return (records[0].grad_norm or 0.0) / float(tg.get_total_norm(list(exact)))


TOP = tg.codecs.TopK(0.001)
FAILURES: dict[str, Failure] = {
    "over_clipping": Failure(tg.Plan(clip=tg.clip.GlobalNorm(1e-3)), over_clipping),
    "idle_clipping": Failure(tg.Plan(clip=tg.clip.GlobalNorm(1e6)), idle_clipping),
    "exploding_norms": Failure(tg.Plan(guard=tg.Guard("raise")), exploding_norms),
    "graph_kept_alive": Failure(tg.Plan(clip=tg.clip.GlobalNorm(1.0)), graph_kept_alive, "growth"),
    "out_of_memory": Failure(tg.Plan(accumulate=tg.Accumulate(1)), out_of_memory, "steps"),
    "precision_lost": Failure(tg.Plan(compress=tg.Compress(TOP)), precision_lost),
    "stale_warm_start": Failure(tg.Plan(compress=tg.Compress(reducer=PowerSGD(4))), stale_warm_start),
    "rank_drift": Failure(tg.Plan(accumulate=tg.Accumulate(1)), rank_drift, "difference"),
    "wrong_denominator": Failure(
        tg.Plan(accumulate=tg.Accumulate(2), clip=tg.clip.GlobalNorm(1.0)), wrong_denominator, "gain"
    ),
}
"""Each problem of the doctor, and the training that has it."""
