"""Operations over ranks: nothing else in the library uses the network or counts its bytes."""

from tightgrad.collectives.single import SingleCollective as SingleCollective
from tightgrad.collectives.threaded import ThreadedCollective as ThreadedCollective
from tightgrad.collectives.threaded import run_threaded as run_threaded
from tightgrad.collectives.torch_dist import TorchCollective as TorchCollective
