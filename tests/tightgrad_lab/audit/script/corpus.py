"""Runs one file of examples/audit as a script of its own: `python corpus.py FILE.py [equal|ragged] [micro-batches]`."""

import importlib.util
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

path, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
spec = importlib.util.spec_from_file_location("audited", path)
audited = importlib.util.module_from_spec(spec)
sys.modules["audited"] = audited
spec.loader.exec_module(audited)
rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
text = Path(path).read_text(encoding="utf-8")
if "torch.distributed" in text or "DistributedDataParallel" in text:
    dist.init_process_group("gloo")
if hasattr(audited, "MAX_NORM"):
    audited.MAX_NORM = 0.05
torch.manual_seed(1)
batches = audited.make_batches(ranks * count, kind == "ragged")
torch.manual_seed(2)
audited.train(audited.build_model(), batches[rank::ranks])
