"""A default device, as `torch.set_default_device("cuda")` sets it, is the user's; what is built here names its own."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import tightgrad as tg

FACTORIES = {"tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "eye"}
FACTORIES |= {"rand", "randn", "randint", "randperm"}
SOURCES = [p for p in Path(tg.__file__).parent.rglob("*.py") if "testing" not in p.parts]


def without_device(source):
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in FACTORIES
        and ast.unparse(call.func.value) == "torch"
        and not {"device", None} & {keyword.arg for keyword in call.keywords}
    ]


def test_every_tensor_that_is_made_names_its_device():
    assert without_device("torch.zeros(3)\ntorch.zeros(3, device='cpu')") == ["torch.zeros(3)"]
    found = {path.name: without_device(path.read_text()) for path in SOURCES}
    assert len(SOURCES) > 100
    assert {name: calls for name, calls in found.items() if calls} == {}


COMPRESS = {
    "random_k": tg.Compress(tg.codecs.RandomK(0.5), feedback=tg.ErrorFeedback()),
    "powersgd": tg.Compress(reducer=tg.reducers.PowerSGD(1, min_compression_factor=1.0), feedback=tg.ErrorFeedback()),
    "qsgd": tg.Compress(tg.codecs.QSGD()),
}


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_a_run_on_the_cpu_does_not_care(compress):
    def ends(collective, device):
        model = nn.Linear(6, 4)
        model.load_state_dict({"weight": torch.linspace(-1.0, 1.0, 24).view(4, 6), "bias": torch.zeros(4)})
        batches = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(collective.rank)).unbind()
        plan = tg.Plan(accumulate=tg.Accumulate(2), compress=compress, clip=tg.clip.AutoClip(), guard=tg.Guard("skip"))
        with torch.device(device):
            pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective)
            for window in pipe.windows(batches):
                for batch in window:
                    pipe.backward(model(batch).square().mean())
                pipe.step()
        return model.weight.detach()

    expected = tg.collectives.run_threaded(2, lambda collective: ends(collective, "cpu"))
    assert all(map(torch.equal, tg.collectives.run_threaded(2, lambda collective: ends(collective, "meta")), expected))
