"""DiLoCo: two islands train by themselves and meet every 20 steps over the slow link between them.

With four ranks each island is two ranks in DistributedDataParallel; with two ranks, one rank each.

The outer step sends how far an island has moved, in 4 bits with error feedback. The numbers after 8 rounds are those of
rank 0.

$ torchrun --nproc-per-node 2 examples/diloco.py
loss 0.401, accuracy 0.798 after 8 rounds of 20 steps, 1 rank(s) each
1280152 bytes sent to the other island, 154 times fewer than a gradient in every step

$ torchrun --nproc-per-node 4 examples/diloco.py
loss 0.158, accuracy 0.804 after 8 rounds of 20 steps, 2 rank(s) each
1280152 bytes sent to the other island, 154 times fewer than a gradient in every step
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad_lab.cases.image import ImageCase

ISLANDS, ROUNDS, EVERY = 2, 8, 20
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size() // ISLANDS
here, place = divmod(rank, size)
islands = [dist.new_group([island * size + other for other in range(size)]) for island in range(ISLANDS)]
links = [dist.new_group([island * size + other for island in range(ISLANDS)]) for other in range(size)]

case = ImageCase()
train, test = case.load()
torch.manual_seed(0)
model = DistributedDataParallel(case.model(), process_group=islands[here])  # averages within the island
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

four_bits = tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback())
rounds = tg.DiLoCo(every=EVERY, plan=tg.Plan(compress=four_bits))
outer = tg.attach_local(model.module, rounds, collective=tg.collectives.TorchCollective(links[place]))

mine = torch.arange(rank, 3000, dist.get_world_size())
chosen = torch.Generator().manual_seed(rank)
sent = 0
for _ in range(ROUNDS * EVERY):
    images, labels = case.batch(train, mine[torch.randint(len(mine), (32,), generator=chosen)])
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    record = outer.step()  # does nothing until the round is over
    if record is not None:
        sent += record.wire_bytes

images, labels = case.batch(test, torch.arange(len(test)))
with torch.no_grad():
    right = (model.module.eval()(images).argmax(dim=1) == labels).double().mean()
if rank == 0:
    dense = ROUNDS * EVERY * 4 * sum(parameter.numel() for parameter in model.parameters())
    print(
        f"loss {loss:.3f}, accuracy {right:.3f} after {outer.state.step} rounds of {EVERY} steps, {size} rank(s) each"
    )
    print(f"{sent} bytes sent to the other island, {dense / sent:.0f} times fewer than a gradient in every step")
dist.destroy_process_group()
