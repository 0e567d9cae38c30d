"""Lightning: `TightGrad` among the callbacks.

$ python examples/integrations/lightning_images.py
accuracy 0.651 after 24 steps
loss 0.898; 0 bytes a step, for a gradient of 1232360 bytes

$ torchrun --nproc-per-node 2 examples/integrations/lightning_images.py
accuracy 0.649 after 12 steps
loss 0.883; 160067 bytes a step, for a gradient of 1232360 bytes
"""

import os

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tightgrad as tg
from tightgrad.integrations.lightning import TightGrad  # 1
from tightgrad_lab.cases.image import ImageCase

case = ImageCase()
train, test = case.load()


class Classifier(lightning.LightningModule):
    """The image case's network."""

    def __init__(self) -> None:
        super().__init__()
        self.model = case.model()

    def training_step(self, batch, index):
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


torch.manual_seed(0)
plan = tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback()))  # 2
tight = TightGrad(plan)  # 3
trainer = lightning.Trainer(
    callbacks=[tight],
    accumulate_grad_batches=4,
    gradient_clip_val=2.0,
    max_epochs=1,
    accelerator="cpu",
    devices=int(os.environ.get("WORLD_SIZE", 1)),
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
module = Classifier()
trainer.fit(module, DataLoader(TensorDataset(*case.batch(train, torch.arange(3000))), 32, shuffle=True))

images, labels = case.batch(test, torch.arange(len(test)))
with torch.no_grad():
    right = (module.model.eval()(images).argmax(dim=1) == labels).double().mean()
if trainer.is_global_zero:
    record, size = tight.loop.record, 4 * sum(parameter.numel() for parameter in module.parameters())
    print(f"accuracy {right:.3f} after {tight.pipe.state.step} steps")
    print(f"loss {record.loss:.3f}; {record.wire_bytes} bytes a step, for a gradient of {size} bytes")
