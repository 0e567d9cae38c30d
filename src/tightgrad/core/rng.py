"""Random numbers that depend on (seed, step, parameter, rank) and on nothing else."""

import hashlib
from dataclasses import dataclass

import torch

_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class StepRng:
    """Makes the generators of one step.

    The global generator is never touched, so a run is the same whatever else draws random numbers, and a resumed
    run is the same as one that was not interrupted.
    """

    seed: int
    step: int
    rank: int

    def local(self, name: str, device: torch.device) -> torch.Generator:
        """Return a generator that differs between ranks."""
        return seeded(_seed_of(f"{self.seed}/{self.step}/{name}/rank {self.rank}"), device)

    def shared(self, name: str, device: torch.device) -> torch.Generator:
        """Return a generator that is the same on every rank."""
        return seeded(self.shared_seed(name), device)

    def shared_seed(self, name: str) -> int:
        """Return the seed of `shared`."""
        return _seed_of(f"{self.seed}/{self.step}/{name}/shared")


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """Return a new generator on `device` with this seed."""
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    return generator


def _seed_of(key: str) -> int:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & ((1 << _SEED_BITS) - 1)
