"""Accelerate takes `fully_shard` on accelerators only: what it then says of itself, on the CPU."""

import os
from contextlib import contextmanager
from unittest import mock

from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType, PartialState

from support.accelerate_state import reset


@contextmanager
def taken_on_cpus():
    """Hold around the making and the use of an accelerator that is given `fsdp_plugin`."""
    begin = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    with mock.patch.object(AcceleratorState, "__init__", init), mock.patch.dict(os.environ):
        try:
            yield
        finally:
            reset()


def plugin():
    """Each module with parameters is a unit, and so is the model."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="size_based_wrap",
        min_num_params=1,
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
