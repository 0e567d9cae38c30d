"""A run on two ranks that is saved, and what is read back of it."""

import torch

import tightgrad as tg
from support.training import linear, loss_of

PLAN = tg.Plan(tg.Accumulate(2), tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback()), guard=tg.Guard("skip"))


def make(collective):
    model = linear()
    return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN, collective=collective)


def windows(pipe, model, loader):
    """Train, and stop after each micro-batch and each step to say where."""
    for window in pipe.windows(loader):
        for number, batch in enumerate(window):
            pipe.backward(loss_of(model, batch))
            yield f"micro-batch {number}"
        pipe.step()
        yield "step"


def load(collective, folder):
    _, pipe = make(collective)
    before = pipe.state_dict()
    try:
        consumed = pipe.load(folder)
    except tg.TightGradError:
        after = pipe.state_dict()
        assert (after["step"], after["slots"]) == (before["step"], before["slots"])
        raise
    state = pipe.state_dict()
    window = pipe.state.open_window
    return consumed, state["step"], state["slots"].get("residual", {}), None if window is None else window.position


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
