"""Accelerate: `TightAccelerator` in the place of `Accelerator`, and the loop as it was.

$ python examples/integrations/accelerate_images.py
accuracy 0.651 after 24 steps
loss 0.898; 0 bytes a step, for a gradient of 1232360 bytes

$ torchrun --nproc-per-node 2 examples/integrations/accelerate_images.py
accuracy 0.619 after 12 steps
loss 1.062; 160067 bytes a step, for a gradient of 1232360 bytes
"""

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
record, size = accelerator.loop.record, 4 * sum(parameter.numel() for parameter in model.parameters())
accelerator.print(f"loss {record.loss:.3f}; {record.wire_bytes} bytes a step, for a gradient of {size} bytes")
accelerator.end_training()
