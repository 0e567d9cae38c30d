"""Payloads frozen in tests/golden: what an older version sent, this version decodes to the same bits.

`COMMAND` writes the files that are missing and changes none. A wire format that changes on purpose gets a folder v2.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from conformance.cases import CODECS
from tightgrad.core.config import method_from_config, to_config
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload
from tightgrad.pipeline.registry import method

GOLDEN = Path(__file__).parent.parent / "golden"
VERSION = "v1"
NUMEL = 300
COMMAND = "TIGHTGRAD_WRITE_GOLDEN=1 .venv/bin/python -m pytest tests/conformance/test_golden.py"


def path_of(codec: Codec) -> Path:
    settings = re.sub(r"[^A-Za-z0-9.=]+", "_", repr(codec)).strip("_")
    return GOLDEN / codec.card.id / VERSION / f"{settings}.safetensors"


def write(codec: Codec, path: Path) -> None:
    flat = torch.randn(NUMEL, generator=torch.Generator().manual_seed(11)) * torch.logspace(-3, 3, NUMEL)
    spec = GradSpec("weight", (20, 15), NUMEL)
    payload = codec.encode(flat, spec, torch.Generator().manual_seed(12))
    tensors = {f"payload{index}": tensor for index, tensor in enumerate(payload.tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {**tensors, "input": flat, "decoded": codec.decode(payload)},
        path,
        {"config": json.dumps(to_config(codec)), "num_tensors": str(len(payload.tensors))},
    )


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_golden_payload_decodes_to_the_same_bits(codec: Codec) -> None:
    path = path_of(codec)
    if not path.exists() and os.environ.get("TIGHTGRAD_WRITE_GOLDEN") == "1":
        write(codec, path)
    assert path.exists(), f"{path} is missing; run `{COMMAND}` and commit it"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = tuple(file.get_tensor(f"payload{index}") for index in range(int(metadata["num_tensors"])))
        decoded = file.get_tensor("decoded")
    frozen = method_from_config(json.loads(metadata["config"]), method, "codec")
    assert frozen == codec
    again = frozen.decode(Payload(tensors, GradSpec("weight", (20, 15), NUMEL)))
    assert torch.equal(again, decoded)


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path for path in GOLDEN.rglob("*.safetensors") if path.parent.name == VERSION} == set(map(path_of, CODECS))
