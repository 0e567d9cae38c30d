"""A network of our own: namespaces joined by a bridge, every link limited to a rate, ranks inside."""

from tightgrad_lab.network.namespaces import Network as Network
from tightgrad_lab.network.namespaces import network as network
from tightgrad_lab.network.namespaces import why_not as why_not
from tightgrad_lab.network.ranks import NetRank as NetRank
from tightgrad_lab.network.ranks import run_in_network as run_in_network
