"""One thread: tasks in order, none after one that has raised, and what has to follow follows in any case."""

import pytest
import torch

from tightgrad.adapters.worker import FifoWorker


@pytest.fixture
def worker():
    return FifoWorker(torch.device("cpu"))


def test_tasks_run_in_the_order_they_were_given(worker):
    done = []
    for number in range(20):
        worker.submit(lambda number=number: done.append(number))
    assert worker.join() is None
    assert done == list(range(20))


def test_after_an_error_nothing_more_is_done_until_it_was_fetched(worker):
    done = []
    worker.submit(lambda: done.append("before"), then=lambda: done.append("then"))
    worker.submit(lambda: 1 / 0, then=lambda: done.append("then"))
    worker.submit(lambda: done.append("after"), then=lambda: done.append("then"))
    assert isinstance(worker.join(), ZeroDivisionError)
    assert done == ["before", "then", "then", "then"]
    worker.submit(lambda: done.append("again"))
    assert worker.join() is None
    assert done[-1] == "again"


def test_the_first_error_counts_and_one_of_what_follows_is_told_too(worker):
    worker.submit(lambda: None, then=lambda: {}["missing"])
    worker.submit(lambda: 1 / 0)
    assert isinstance(worker.join(), KeyError)
    assert worker.join() is None


def test_tasks_keep_no_graph(worker):
    seen = []
    worker.submit(lambda: seen.append(torch.is_grad_enabled()))
    worker.join()
    assert seen == [False]
