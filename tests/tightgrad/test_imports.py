"""What `import tightgrad` needs of torch: nothing private of FSDP2, which a model under `fully_shard` brings along."""

import subprocess
import sys

import pytest

BLOCK = """
import importlib.abc, sys, torch, torch.nn.parallel
torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)  # torch._dynamo, which this imports, imports FSDP2
for name in list(sys.modules):
    if name.startswith({prefixes!r}):
        del sys.modules[name]
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith({prefixes!r}):
            raise ImportError(f"{{name}} is not there")
sys.meta_path.insert(0, Block())
import tightgrad as tg
"""

PLAIN = """
model = torch.nn.Linear(4, 1)
plan = tg.Plan(accumulate=tg.Accumulate(2), clip=tg.clip.GlobalNorm(1.0))
pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
for window in pipe.windows([torch.ones(3, 4), torch.ones(5, 4)]):
    for batch in window:
        pipe.backward(model(batch).square().mean())
    assert pipe.step().micro_batches == 2
"""

DDP = """
import os, torch.distributed as dist
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="0")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(clip=tg.clip.GlobalNorm(1.0)))
for window in pipe.windows([torch.ones(3, 4)]):
    for batch in window:
        pipe.backward(model(batch).square().mean())
    pipe.step()
dist.destroy_process_group()
"""

SHARDED = """
base = type("FSDPModule", (), {"__module__": "torch.distributed.fsdp"})
model = type("FSDPLinear", (base, torch.nn.Linear), {})(4, 1)
try:
    tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan())
except tg.UnsupportedError as error:
    assert torch.__version__ in str(error), error
else:
    raise SystemExit("not refused")
"""

FSDP2 = ("torch.distributed.fsdp._fully_shard",)
PRIVATE = (*FSDP2, "torch.distributed.fsdp", "torch.distributed._composable", "torch.distributed.tensor.parallel")


@pytest.mark.parametrize(
    "prefixes", [pytest.param(FSDP2, id="fsdp2", marks=pytest.mark.slow), pytest.param(PRIVATE, id="more")]
)
def test_a_torch_without_private_modules_runs_what_does_not_need_them(prefixes):
    text = BLOCK.format(prefixes=prefixes) + PLAIN + DDP + SHARDED
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
