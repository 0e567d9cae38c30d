"""Accelerate: `TightAccelerator` in the place of `Accelerator`, and the loop as it was. Try also: accelerate launch."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tightgrad as tg
from tightgrad.integrations.accelerate import TightAccelerator  # 1
from tightgrad_lab.cases.image import ImageCase

plan = tg.Plan(  # 2
    clip=tg.clip.GlobalNorm(2.0), compress=tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback())
)
accelerator = TightAccelerator(plan=plan, gradient_accumulation_steps=4, cpu=True)  # 3

torch.manual_seed(0)
case = ImageCase()
train, test = case.load()
images, labels = case.batch(train, torch.arange(3000))
loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
model = case.model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

model.train()
for images, labels in loader:
    with accelerator.accumulate(model):
        accelerator.backward(nn.functional.cross_entropy(model(images), labels))
        accelerator.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()

model.eval()
images, labels = case.batch(test, torch.arange(len(test)))
with torch.no_grad():
    right = (model(images).argmax(dim=1) == labels).double().mean()
accelerator.print(f"accuracy {right:.3f} after {accelerator.pipe.state.step} steps")
