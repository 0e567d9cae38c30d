"""How long tests wait before they call something hanging.

No test measures speed, so waiting long costs nothing while all is well, and on a busy machine everything takes ten
times as long. Only a test that waits for a time-out on purpose chooses a short one of its own.
"""

SLOWER = 10  # than on a quiet machine


def patience(usual: float) -> float:
    """Return how many seconds to wait for what takes less than `usual` seconds on a quiet machine."""
    return SLOWER * usual


COLLECTIVE_SECONDS = patience(60)  # until a collective among processes gives up
THREADS_SECONDS = patience(20)  # until a collective among threads does
GRACE_SECONDS = patience(3)  # after one rank failed, for the others to say why they did
