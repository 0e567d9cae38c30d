"""How long tests wait before they call something hanging.

No test measures speed, so waiting long costs nothing while all is well; on a busy machine everything takes ten times
as long. A test that is about a time-out, and so waits until it is over, chooses a short one of its own.
"""

SLOWER = 10  # on a machine with so much else to do

COLLECTIVE_SECONDS = 60.0 * SLOWER  # until a collective among processes gives up
THREADS_SECONDS = 20.0 * SLOWER  # until a collective among threads does
HANG_SECONDS = 60.0 * SLOWER  # until a process that takes seconds counts as hanging


def seconds(usual: float) -> float:
    """How long to wait for what takes less than `usual` seconds on a quiet machine."""
    return usual * SLOWER
