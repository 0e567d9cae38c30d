"""torch's distributed checkpoints step an optimizer that has no state yet, so that there is one to write or to fill:
with gradients of 0 and a learning rate of 0, and only where no parameter has a gradient.
"""

import sys
from types import FrameType

_FUNCTION = "_init_optim_state"  # private, in torch.distributed.checkpoint.state_dict; torch 2.9 to 2.15
_DEPTH = 12  # calls between it and the hooks of a step


def is_initialising_state() -> bool:
    """Tell whether this step, or this `zero_grad`, is that of a distributed checkpoint, which moves no weight."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_code.co_name == _FUNCTION:
            return str(frame.f_globals.get("__name__")).startswith("torch.distributed.checkpoint.")
        frame = frame.f_back
    return False
