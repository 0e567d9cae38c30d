"""Runs the script that Accelerate ships to test gradient synchronisation, with `TightAccelerator` in its place."""

import sys

from accelerate.test_utils.scripts import test_sync

import tightgrad as tg
from tightgrad.integrations.accelerate import TightAccelerator

made = []


class Tight(TightAccelerator):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, plan=tg.Plan(), compat="accelerate", **kwargs)
        made.append(self)


test_sync.Accelerator = Tight
test_sync.main()
steps = sum(one.pipe.state.step for one in made if one.loop is not None)
sys.stdout.write(f"[{steps} steps through the pipeline]\n")
