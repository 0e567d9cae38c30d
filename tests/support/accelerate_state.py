"""What Accelerate keeps in the process, and what each of its tests begins without."""

from accelerate.state import AcceleratorState, GradientState


def reset():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
