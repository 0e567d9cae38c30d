"""Objects that are alive are found by their class, and other threads do not notice."""

import sys
import threading

import torch
from torch import nn, optim

from tightgrad.core.living import instances


class Mine(optim.SGD):
    pass


class Colder(Mine):
    pass


def test_objects_of_a_class_and_of_those_derived_from_it_are_found() -> None:
    weight = nn.Parameter(torch.zeros(2))
    mine, colder = Mine([weight], lr=1.0), Colder([weight], lr=1.0)
    assert {id(one) for one in instances(Mine)} == {id(mine), id(colder)}
    assert {id(mine), id(colder)} <= {id(one) for one in instances(optim.Optimizer)}
    assert [one for one in instances(Colder) if one is not colder] == []
    assert any(one is weight for one in instances(nn.Parameter))
    del mine
    assert [type(one) for one in instances(Mine)] == [Colder]


def test_tuples_that_other_threads_are_building_are_left_alone() -> None:
    ended, errors = threading.Event(), []

    def build() -> None:
        try:
            while not ended.is_set():
                tuple(index for index in range(100))
        except SystemError as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(10):
            instances(optim.Optimizer)
    finally:
        ended.set()
        sys.setswitchinterval(before)
        for thread in threads:
            thread.join()
    assert errors == []
