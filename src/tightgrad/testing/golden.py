"""Payloads frozen in files: what an older version of a codec sent, this version decodes to the same bits.

The files lie in a folder of the package that has the codec. With TIGHTGRAD_WRITE_GOLDEN=1 in the environment, or
`pytest --tightgrad-write-golden`, missing ones are written; none is ever changed. A wire format that changes on
purpose gets a folder v2.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tightgrad.core.config import method_from_config, to_config
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload
from tightgrad.plan.registry import method

VERSION = "v1"
WRITE = "TIGHTGRAD_WRITE_GOLDEN"
LONGEST = 180
"""Characters of settings in a file's name; most file systems allow 255."""
NUMEL = 300
SPEC = GradSpec("weight", (20, 15), NUMEL)


def golden_path(folder: Path, codec: Codec) -> Path:
    """Return the file of a codec with these settings."""
    settings = re.sub(r"[^A-Za-z0-9.=]+", "_", repr(codec)).strip("_")
    if len(settings) > LONGEST:
        settings = f"{settings[:LONGEST]}_{hashlib.blake2b(repr(codec).encode(), digest_size=8).hexdigest()}"
    return folder / codec.card.id / VERSION / f"{settings}.safetensors"


def check_golden(codec: Codec, folder: Path) -> None:
    """Check that a frozen payload decodes to the same bits as when it was written."""
    path = golden_path(folder, codec)
    if not path.exists() and os.environ.get(WRITE) == "1":
        _write(codec, path)
    assert path.exists(), (
        f"{path} is missing; run pytest once with {WRITE}=1 in the environment, or with `-p tightgrad.testing "
        "--tightgrad-write-golden`, and commit the file"
    )
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = tuple(file.get_tensor(f"payload{index}") for index in range(int(metadata["num_tensors"])))
        decoded = file.get_tensor("decoded")
    frozen = method_from_config(json.loads(metadata["config"]), method, "codec")
    assert frozen == codec, (
        f"{path.name} was written by {frozen!r} of {type(frozen).__module__}, expected {codec!r} of "
        f"{type(codec).__module__}; if its settings have changed on purpose, remove the file and write it anew"
    )
    assert torch.equal(frozen.decode(Payload(tensors, SPEC)), decoded), (
        f"{path.name} is decoded to other values than when it was written. What an older version sent must stay "
        'readable: give the new format another setting or id, or a new folder "v2"'
    )


def check_no_golden_file_is_left_over(codecs: Sequence[Codec], folder: Path) -> None:
    """Check that every file below the folders of these codecs' ids belongs to one of them."""
    known = {golden_path(folder, codec) for codec in codecs}
    below = {path for codec in codecs for path in (folder / codec.card.id / VERSION).glob("*.safetensors")}
    assert not below - known, "files without a codec of these settings; list the codec, or remove the file"


def _write(codec: Codec, path: Path) -> None:
    flat = torch.randn(NUMEL, generator=torch.Generator().manual_seed(11)) * torch.logspace(-3, 3, NUMEL)
    payload = codec.encode(flat, SPEC, torch.Generator().manual_seed(12))
    tensors = {f"payload{index}": tensor for index, tensor in enumerate(payload.tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {**tensors, "input": flat, "decoded": codec.decode(payload)},
        path,
        {"config": json.dumps(to_config(codec)), "num_tensors": str(len(payload.tensors))},
    )
