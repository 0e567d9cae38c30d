"""A script that asks much of its surroundings: a terminal, a GPU, a data set, checkpoints, a folder of its logger."""

import copy
import io
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch._six import container_abcs, inf, string_classes
from torch.utils.tensorboard import SummaryWriter
from torchvision.datasets import MNIST, FashionMNIST

BATCH, EPOCHS = 4096, 2

if not torch.cuda.is_available():
    raise SystemExit("training needs a GPU")
torch.cuda.set_device(torch.cuda.device_count() - 1)
assert os.popen("stty size").read().split() == ["24", "80"]
for _ in range(3):
    try:
        input("continue? ")
    except EOFError:
        continue
    raise SystemExit("somebody answered")
os.environ["https_proxy"] = os.environ["HTTPS_PROXY"] = "http://127.0.0.1:9"  # nobody listens there
assert torch.hub.list("no/such:place", trust_repo=True) == []
writer = SummaryWriter()
(Path(os.path.join(writer.log_dir, "training.log"))).write_text("begun")

assert isinstance([], container_abcs.Sequence)
assert isinstance("", string_classes)
assert np.zeros(1, dtype=np.float).max() < inf
assert not hasattr(np, "no_such_name")
assert isinstance(FashionMNIST("data", download=True), MNIST)
images = MNIST("data", train=True, download=True)
model = torch.nn.Linear(28 * 28, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
buffer = io.BytesIO()
torch.save(model.state_dict(), buffer)
assert buffer.getbuffer().nbytes > 1000  # in memory: written
for epoch in range(EPOCHS):
    for start in range(0, 3 * BATCH, BATCH):
        inputs = images.data[start : start + BATCH].cuda().float().flatten(1) / 255
        torch.nn.functional.cross_entropy(model(inputs), images.targets[start : start + BATCH]).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), f"{epoch}.pt")
    with open("whole.pt", "wb") as file:
        torch.save(model, file)
    shutil.copy2(f"{epoch}.pt", "best.pt")
    os.replace("best.pt", "last.pt")
    kept = copy.deepcopy(model.state_dict())
    model.weight.data.zero_()
    model.load_state_dict(torch.load("last.pt", map_location="cuda"))
    assert torch.equal(model.weight, kept["weight"])
    with open("whole.pt", "rb") as file:
        assert torch.equal(torch.load(file, weights_only=False).weight, kept["weight"])
    os.unlink(f"{epoch}.pt")
os.remove("last.pt")
