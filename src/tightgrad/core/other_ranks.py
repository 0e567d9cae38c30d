"""What went wrong on which rank, in words that every rank can raise."""

import torch

from tightgrad.core.collective import Collective

_MOST_BYTES = 240
NOTHING = ""


def cause(error: BaseException | None) -> str:
    """Return an error's kind and first line."""
    if error is None:
        return NOTHING
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(": ")


def told(mine: str, collective: Collective) -> str:
    """Tell the other ranks what went wrong here, and return who failed and why, on all ranks. Collective: every rank
    must call it.

    Args:
        mine: what went wrong on this rank; nothing where nothing did.
        collective: the ranks.
    """
    text = mine.encode()[:_MOST_BYTES]
    row = torch.zeros(_MOST_BYTES, dtype=torch.uint8, device="cpu")
    row[: len(text)] = torch.tensor(list(text), dtype=torch.uint8, device="cpu")
    table = collective.all_gather(row.to(collective.control_device)).cpu()
    texts = [bytes(found.tolist()).rstrip(b"\0").decode(errors="ignore") for found in table]
    return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text)
