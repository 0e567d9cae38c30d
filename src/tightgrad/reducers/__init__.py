"""Reducers: who talks to whom, in which rounds. A line here registers the method under its card's id."""

from tightgrad.reducers.dense import Dense as Dense
from tightgrad.reducers.gather import Gather as Gather
from tightgrad.reducers.two_shot import TwoShot as TwoShot
