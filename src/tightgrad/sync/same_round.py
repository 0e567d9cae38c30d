"""Before a round of communication, ranks tell each other what they are about to do: 24 bytes each.

A rank that is elsewhere (its backward used other parameters, its loop called backward once more) would otherwise
leave the others waiting, or give them bytes of another tensor.
"""

import hashlib
from collections.abc import Sequence
from enum import IntEnum, IntFlag

from tightgrad.core.collective import gathered
from tightgrad.core.errors import RankMismatchError, TightGradError
from tightgrad.core.notices import named
from tightgrad.core.protocols import Collective

DIGEST_NBYTES = 7


class Round(IntEnum):
    """What a rank does next."""

    BUCKET = 1
    END = 2
    ABANDON = 3


class Notice(IntFlag):
    """What a rank has seen."""

    NOTHING = 0
    NONFINITE = 1
    REPEATED = 2
    MISSING = 4
    LATE = 8


_DOING = {
    Round.BUCKET: "has more gradients to reduce",
    Round.END: "is at the end of the step",
    Round.ABANDON: "has dropped the step after an error of its own",
}


def agree(round_: Round, names: Sequence[str], notice: Notice, collective: Collective) -> Notice:
    """Compare this round over ranks. Collective: every rank must call it, whatever its round is.

    Args:
        round_: what this rank does next.
        names: the parameters that it is about, in order.
        notice: what this rank has seen.
        collective: the ranks.

    Returns:
        What any rank has seen.

    Raises:
        RankMismatchError: on every rank, if their rounds or names differ.
    """
    rounds, digests, notices = zip(*gathered([round_, _digest(names), notice], collective), strict=True)
    if len(set(rounds)) > 1:
        raise _elsewhere(rounds)
    if len(set(digests)) > 1:
        raise RankMismatchError(
            f"the ranks reduce different gradients; here, on rank {collective.rank}, those of {named(names)}. Their "
            "modules were wrapped with different settings, or their losses used different parameters: give "
            "DistributedDataParallel the same arguments on every rank, find_unused_parameters=True if parameters go "
            'unused, or take Compress(overlap="none").'
        )
    seen = Notice.NOTHING
    for value in notices:
        seen |= Notice(value)
    return seen


def _elsewhere(rounds: Sequence[int]) -> TightGradError:
    where = "; ".join(
        f"rank {', '.join(str(rank) for rank, found in enumerate(rounds) if found == kind)} {text}"
        for kind, text in _DOING.items()
        if kind in rounds
    )
    return RankMismatchError(
        f"the ranks are not at the same place: {where}. Where ranks use different parameters, wrap the model with "
        'DistributedDataParallel(find_unused_parameters=True) or take Compress(overlap="none").'
    )


def _digest(names: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(names).encode(), digest_size=DIGEST_NBYTES).digest(), "little")
