"""Kills ranks while they save, again and again, and after each time loads what is there. A process of its own:

    python -m faults.kill_saves FOLDER COUNT SEED SIGNAL

Every life of the run is two forked gloo ranks that load, train and save after every micro-batch, every step or every
skipped step. One rank, or both, get the signal: before the n-th file operation of a save, or at a random moment
between two saves' ends. Whatever a save holds is filled with its number, which the ranks first write to a journal; so
a mixture shows. A line of JSON with the counts and the failures goes to stdout.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import tightgrad as tg
from support.waiting import COLLECTIVE_SECONDS

RANKS = 2
MICRO_BATCHES = 3
KINDS = ("after a step", "in a window", "after a skipped step", "in a window")
PLAN = tg.Plan(
    tg.Accumulate(MICRO_BATCHES),
    tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback()),
    guard=tg.Guard("skip", max_consecutive_skips=10**6),
)
FILE_OPERATIONS = {"open", "os.mkdir", "os.listdir", "os.rename", "os.remove"}  # as audit events call them
NUM_OPERATIONS = (12, 5)  # in one save of rank 0, and of another
LOST_A_RANK = 7  # exit code of a rank that was told so


@dataclass(frozen=True)
class Life:
    """One life of the run, and how it ends.

    Attributes:
        number: of lives before.
        kind: when the ranks save.
        victims: which ranks get the signal.
        saves: that end before.
        operation: of the next save, before which the victim kills itself; None is at a random moment.
        moment: of the time that a save takes.
        signal: which one.
    """

    number: int
    kind: str
    victims: tuple[int, ...]
    saves: int
    operation: int | None
    moment: float
    signal: signal.Signals


def draw_life(number: int, draw: random.Random, sent: signal.Signals) -> Life:
    victims = draw.choice(((0,), (1,), (0, 1)))
    by_operation = len(victims) == 1 and draw.random() < 0.6
    operation = draw.randrange(NUM_OPERATIONS[victims[0]]) if by_operation else None
    return Life(number, KINDS[number % len(KINDS)], victims, draw.randint(1, 3), operation, draw.random(), sent)


# What a rank does
def batches(rank: int, kind: str) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    while True:
        batch = torch.randn(2, 3, generator=generator)
        yield batch * torch.nan if kind == "after a skipped step" and rank == 1 else batch


def attached(collective: Any) -> tuple[torch.nn.Module, tg.GradientPipeline]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.01), PLAN, collective=collective)


def fill(pipe: tg.GradientPipeline, marker: int) -> None:
    """Everything that a save will hold of tensors."""
    for tensor in pipe.state.slots.setdefault("residual", {}).values():
        tensor.fill_(marker)
    for name, parameter in pipe.adapter.parameters.items():
        pipe.state.slots["residual"][name] = torch.full_like(parameter.detach(), marker)
    grads = [parameter.grad for parameter in pipe.adapter.parameters.values() if parameter.grad is not None]
    if grads:  # of an open window: as the pipeline itself would write them
        pipe.ownership.take_grads()
        for grad in grads:
            grad.fill_(marker)
        pipe.ownership.watch_grads()


def counters(state: dict[str, Any]) -> list[Any]:
    window = state["open_window"]
    return [state["step"], state["consecutive_skips"], state["num_consumed"], window and window["position"]]


class Saver:
    """Saves under increasing numbers, and tells the journal before and after."""

    def __init__(
        self, pipe: tg.GradientPipeline, folder: Path, first: int, rank: int, tell: Callable[[], None]
    ) -> None:
        self.pipe, self.folder, self.marker, self.tell = pipe, folder, first, tell
        self.journal = os.open(folder / f"journal-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def save(self) -> None:
        self.marker += 1
        fill(self.pipe, self.marker)
        state = self.pipe.state_dict()
        os.write(self.journal, (json.dumps([self.marker, "begun", counters(state)]) + "\n").encode())
        self.pipe.save(self.folder)
        os.write(self.journal, (json.dumps([self.marker, "ended", None]) + "\n").encode())
        self.tell()


def kill_at(operation: int, sent: signal.Signals) -> None:
    """From now on, before the file operation of this number."""
    left = [operation]

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_OPERATIONS:
            if left[0] == 0:
                os.kill(os.getpid(), sent)
            left[0] -= 1

    sys.addaudithook(heard)


def live(rank: int, life: Life, folder: Path, store: Path, told: int | None) -> None:
    ended = [0]

    def tell() -> None:
        if told is not None:
            os.write(told, b".")
        ended[0] += 1
        if ended[0] == life.saves and life.operation is not None and rank in life.victims:
            kill_at(life.operation, life.signal)

    limit = timedelta(seconds=COLLECTIVE_SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=limit)
    model, pipe = attached(tg.collectives.TorchCollective())
    pipe.load(folder)
    saver = Saver(pipe, folder, 1000 * (life.number + 1), rank, tell)
    for window in pipe.windows(batches(rank, life.kind)):
        for number, batch in enumerate(window, start=1):
            pipe.backward(model(batch).square().mean())
            if life.kind == "in a window" and number < len(window):
                saver.save()
        pipe.step()
        if life.kind != "in a window":
            saver.save()


def save_first(folder: Path) -> None:
    def body(collective: Any) -> None:
        _, pipe = attached(collective)
        Saver(pipe, folder, 0, collective.rank, lambda: None).save()

    tg.collectives.run_threaded(RANKS, body)


# What is there afterwards
def check(folder: Path) -> None:
    """Load, and compare with the journal. A line of a killed rank's journal is whole: it is one write."""
    lines = [
        json.loads(line) for rank in range(RANKS) for line in (folder / f"journal-{rank}").read_text().splitlines()
    ]
    begun: dict[int, list[Any]] = {}
    for marker, what, counted in lines:
        if what == "begun":
            assert begun.setdefault(marker, counted) == counted, "the ranks did not save at the same place"
    newest_ended = max(marker for marker, what, _ in lines if what == "ended")

    def load(collective: Any) -> tuple[set[float], list[Any]]:
        _, pipe = attached(collective)
        pipe.load(folder)
        window = pipe.state.open_window
        tensors = [*pipe.state.slots["residual"].values(), *(window.grads.values() if window else ())]
        found = {value for tensor in tensors for value in tensor.view(-1).tolist()}
        return found, [*counters(pipe.state_dict())[:3], window and window.position]

    ranks = tg.collectives.run_threaded(RANKS, load)
    markers = set().union(*(found for found, _ in ranks))
    assert len(markers) == 1, f"files of different saves were loaded: {ranks}"
    marker = int(markers.pop())
    assert marker >= newest_ended, f"save {newest_ended} had ended, but {marker} was loaded"
    for _, counted in ranks:
        assert counted == begun[marker], f"{counted} was loaded, but save {marker} had {begun[marker]}"
    if begun[marker][-1] is None:  # between windows: also by one rank, which takes both residuals
        assert load(tg.collectives.SingleCollective())[0] == {float(RANKS * marker)}


# The process that watches
def forked(body: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        body()
        code = 0
    except tg.CommunicationError:
        code = LOST_A_RANK
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def exit_codes(processes: list[int]) -> list[int]:
    deadline = time.monotonic() + 2 * COLLECTIVE_SECONDS
    codes: dict[int, int] = {}
    while len(codes) < len(processes):
        for process in processes:
            if process not in codes:
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    codes[process] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for process in set(processes) - set(codes):
                os.kill(process, signal.SIGKILL)
            raise TimeoutError(f"ranks did not end: {codes} of {processes}")
        time.sleep(0.002)
    return [codes[process] for process in processes]


def end(life: Life, processes: list[int], heard: int) -> None:
    """Send the signal at the life's moment, unless the victim does it itself."""
    ends: list[float] = []
    while len(ends) < life.saves + 1:
        if not os.read(heard, 1):
            return  # the victim is dead
        ends.append(time.monotonic())
    if life.operation is None:
        time.sleep(life.moment * (ends[-1] - ends[-2]))
        for rank in life.victims:
            os.kill(processes[rank], life.signal)


def attempt(life: Life, folder: Path, scratch: Path) -> bool:
    """One life and what it leaves; whether it ended while the victim saved."""
    store = scratch / f"store-{life.number}"
    heard, told = os.pipe()

    def body_of(rank: int) -> Callable[[], None]:
        return lambda: live(rank, life, folder, store, told if rank == life.victims[0] else None)

    processes = [forked(body_of(rank)) for rank in range(RANKS)]
    os.close(told)
    try:
        end(life, processes, heard)
        codes = exit_codes(processes)
    finally:
        os.close(heard)
    for rank, code in enumerate(codes):
        allowed = {-life.signal} if rank in life.victims else {LOST_A_RANK}
        assert code in allowed, f"rank {rank} ended with {code}"
    last = (folder / f"journal-{life.victims[0]}").read_text().splitlines()[-1]
    code = exit_codes([forked(lambda: check(folder))])[0]
    assert code == 0, "what was left could not be loaded, or was a mixture; see above"
    return json.loads(last)[1] == "begun"


def main() -> None:
    root, count, seed, sent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), signal.Signals[sys.argv[4]]
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    folder, scratch = root / "saves", root / "scratch"
    folder.mkdir(parents=True)
    scratch.mkdir()
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    failures = []
    save_first(folder)  # here, so that what is imported late is imported once; no thread is left to be forked
    for number in range(count):
        life = draw_life(number, draw, sent)
        try:
            in_save = attempt(life, folder, scratch)
        except Exception:
            failures.append(f"{life}\n{traceback.format_exc()}")
            break
        counts[life.kind] += 1
        counts["while the victim saved"] += in_save
    print(json.dumps({"counts": counts, "failures": failures}))


if __name__ == "__main__":
    main()
