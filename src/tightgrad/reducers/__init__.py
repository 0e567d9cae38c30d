"""Reducers: how gradients are summed over ranks, in which rounds of communication. A line here registers the method
under its card's id.
"""

from tightgrad.reducers.dense import Dense as Dense
from tightgrad.reducers.gather import Gather as Gather
from tightgrad.reducers.hierarchical import Hierarchical as Hierarchical
from tightgrad.reducers.linear import Linear as Linear
from tightgrad.reducers.majority_vote import MajorityVote as MajorityVote
from tightgrad.reducers.powersgd import PowerSGD as PowerSGD
from tightgrad.reducers.sparse_two_shot import SparseTwoShot as SparseTwoShot
from tightgrad.reducers.two_shot import TwoShot as TwoShot
