"""Data sets that are not in the package: fetched once, checked, kept in the user's cache.

`catalogue` says which there are, `cache` keeps them; a source is a standard loader, an address or a registry's archive.
"""

from tightgrad_lab.fetch.cache import get as get
from tightgrad_lab.fetch.cache import is_cached as is_cached
from tightgrad_lab.fetch.cache import need as need
