"""Random generators by key: a draw depends on its key alone, never on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def row_seed(seed: int, *key: int | str) -> int:
    """63 bits for (seed, *key): the ``rows`` of a :class:`ace_core.models.context.NoiseKey`."""
    digest = hashlib.blake2b(repr((int(seed), *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *key: int | str) -> torch.Generator:
    """A CPU generator for (seed, *key), for instance ``generator(seed, "input dropout", epoch, batch)``.

    Start the key with a word that says what the numbers are for: other uses of the same seed then cannot meet it. torch's
    CPU generator keeps 32 bits of its seed, so two of n keys share a stream with probability about n**2 / 2**33.
    """
    digest = hashlib.blake2b(repr((int(seed), *key)).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
