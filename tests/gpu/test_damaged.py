"""Damaged payloads on the device: a PayloadError or some tensor of the right shape, and the device lives on.

An index out of bounds inside a kernel would end the process's use of the device, so this is a file of its own.
"""

import random
from contextlib import suppress

import pytest
import torch

from conformance.cases import CODECS
from support.device import DEVICE, generator, skip_without_device, synchronize
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec
from tightgrad.core.wire import from_bytes, to_bytes
from tightgrad.testing.inputs import normal

skip_without_device()


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_damaged_bytes_never_crash(codec: Codec) -> None:
    chooser = random.Random(5)
    for numel in (1, 33, 300):
        flat = normal(numel).to(DEVICE)
        payload = codec.encode(flat, GradSpec.of("weight", flat), generator())
        good = to_bytes([payload], DEVICE).cpu()
        for attempt in range(20):
            message = good.clone()
            if attempt % 2:
                message = torch.tensor([chooser.randrange(256) for _ in range(good.numel())], dtype=torch.uint8)
            else:
                for _ in range(4):
                    message[chooser.randrange(good.numel())] = chooser.randrange(256)
            with suppress(PayloadError):
                (received,) = from_bytes(message.to(DEVICE), codec, [payload.spec])
                decoded = codec.decode(received)
                assert decoded.shape == (numel,)
                codec.add_to_(torch.zeros_like(decoded), received)
            synchronize()
