"""How many windows a loader makes: told by len() where it can be known, and by TypeError in words where not."""

import gc
import io
import operator

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import tightgrad as tg
from support.in_turn import in_turn
from support.training import batches, linear, loss_of, train


def make(accumulate=None, records=(), **arguments):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = tg.Plan(accumulate=accumulate) if accumulate else tg.Plan()
    return model, tg.attach(model, optimizer, plan, records=records, **arguments)


SETTINGS = {
    "empty plan": None,
    "one": tg.Accumulate(1),
    "flush": tg.Accumulate(3),
    "fetched first": tg.Accumulate(3, fetch="window"),
    "drop": tg.Accumulate(3, partial="drop"),
    "split": tg.Accumulate(3, source="split"),
    "schedule": tg.Accumulate(((0, 1), (2, 3))),
    "schedule, fetched first": tg.Accumulate(((0, 2), (1, 1), (4, 3)), fetch="window"),
    "schedule that drops": tg.Accumulate(((0, 2), (3, 4)), partial="drop"),
    "schedule beyond": tg.Accumulate(((0, 2), (100, 4))),
}


@pytest.mark.parametrize(("name", "num"), in_turn(SETTINGS, range(14)))
def test_the_length_is_the_number_of_windows(name, num):
    model, pipe = make(SETTINGS[name])
    loader = batches(num)
    assert len(pipe.windows(loader)) == len(train(pipe, model, loader))
    assert len(pipe.windows(loader)) == len(train(pipe, model, loader)), "from the step where it is now"


def test_batches_that_are_carried_over_count():
    model, pipe = make(tg.Accumulate(3, partial="carry"))
    for num in (4, 4, 1, 5):
        windows = pipe.windows(batches(num))
        expected, found = len(windows), 0
        for window in windows:
            for batch in window:
                pipe.backward(loss_of(model, batch))
            pipe.step()
            found += 1
        assert found == expected


def test_it_stays_while_windows_are_taken():
    model, pipe = make(tg.Accumulate(((0, 1), (2, 3))))
    windows = pipe.windows(batches(8))
    for _ in range(3):
        assert len(windows) == 4
        for batch in next(windows):
            pipe.backward(loss_of(model, batch))
        pipe.step()
    assert len(windows) == 4


def test_data_loaders_have_one():
    _, pipe = make(tg.Accumulate(4))
    assert len(pipe.windows(DataLoader(TensorDataset(torch.zeros(50, 3)), batch_size=4))) == 4


def test_resumed_in_mid_window():
    model, pipe = make(tg.Accumulate(3))
    micro_batches = iter(next(pipe.windows(batches(8))))
    for _ in range(2):
        pipe.backward(loss_of(model, next(micro_batches)))
    other, resumed = make(tg.Accumulate(3))
    resumed.load_state_dict(pipe.state_dict())
    assert len(resumed.windows(batches(8))) == len(train(resumed, other, batches(8))) == 3


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.zeros(8, 3)


class Endless:
    def __len__(self):
        raise NotImplementedError

    def __iter__(self):
        yield from batches(4)


WITHOUT = {
    "generator": lambda: (batch for batch in batches(4)),
    "iterable data set": lambda: DataLoader(Stream(), batch_size=2),
    "not implemented": Endless,
}


@pytest.mark.parametrize("accumulate", [None, tg.Accumulate(2)], ids=["empty", "accumulate"])
@pytest.mark.parametrize("loader", WITHOUT.values(), ids=WITHOUT)
def test_a_loader_without_a_length(loader, accumulate):
    model, pipe = make(accumulate, weight=lambda batch: 1.0)
    with pytest.raises(TypeError, match=r"pipe\.windows\(loader\) has no length, since the loader has none"):
        len(pipe.windows(loader()))
    assert operator.length_hint(pipe.windows(loader()), 7) == 7
    assert len(list_of_windows(pipe, model, loader())) in (2, 4)


def list_of_windows(pipe, model, loader):
    records = []
    for window in pipe.windows(loader):
        pipe.run(window, lambda batch: loss_of(model, batch))
        records.append(window)
    return records


def test_windows_by_weight_have_no_length():
    _, pipe = make(tg.Accumulate(None, window_weight=8))
    with pytest.raises(TypeError, match=r"window_weight=8 have no length.*micro_batches="):
        len(pipe.windows(batches(4)))


def test_a_number_that_was_set_counts():
    model, pipe = make(tg.Accumulate(4))
    pipe.set_micro_batches(2)
    assert len(pipe.windows(batches(6))) == len(train(pipe, model, batches(6))) == 3


def test_leaving_the_loop_still_ends_the_windows():
    _, pipe = make(tg.Accumulate(2))
    ended = []

    def loader():
        try:
            yield from batches(6)
        finally:
            ended.append(True)

    for window in pipe.windows(loader()):
        assert len(window) == 2
        break
    pipe.abandon()
    del window
    gc.collect()
    assert ended == [True]


class Tty(io.StringIO):
    def isatty(self):
        return True


def shown(accumulate, *loaders, flush=False, **arguments):
    """The lines that a terminal has shown, one for each step."""
    stream = Tty()
    terminal = tg.records.Terminal(stream, clock=iter(range(1000)).__next__)
    model, pipe = make(accumulate, records=[terminal], **arguments)
    for loader in loaders:
        train(pipe, model, loader)
    return [line.strip() for line in stream.getvalue().split("\r")[1:]]


def test_progress_shows_windows_of_how_many():
    lines = shown(tg.Accumulate(2), batches(5), batches(4))
    assert [line[line.index("window") :] for line in lines] == [
        f"window {n} of {of}" for of in (3, 2) for n in range(1, of + 1)
    ]


def test_progress_without_a_length_shows_none():
    assert not any("window" in line for line in shown(tg.Accumulate(2), iter(batches(5))))
    assert not any("window" in line for line in shown(tg.Accumulate(5), batches(5))), "one is no progress"


def test_a_window_without_weight_is_one_and_a_flush_is_none():
    stream = Tty()
    terminal = tg.records.Terminal(stream, clock=iter(range(1000)).__next__)
    terminal.begin(3)
    for record in ({"weight": 2.0}, {"weight": 0.0, "skip_reason": "zero_weight"}, {"weight": 0.0}, {"weight": 1.0}):
        terminal.write({"step": 0, "skipped": False, **record})
    found = [line[line.index("window") :].strip() for line in stream.getvalue().split("\r")[1:]]
    assert found == ["window 1 of 3", "window 2 of 3", "window 2 of 3", "window 3 of 3"]


def test_a_writer_of_its_own_class_needs_no_beginning():
    class Writer:
        def __init__(self):
            self.written = []

        def start(self, rank, ranks, plan): ...

        def write(self, record):
            self.written.append(record["step"])

        def failed(self, error): ...

        def close(self): ...

    writer = Writer()
    model, pipe = make(tg.Accumulate(2), records=[writer])
    train(pipe, model, batches(4))
    assert writer.written == [0, 1]
