"""Which groups a step sees and how they are cut: all of it a pure function of (seed, step, group ids).

Nothing depends on position in the table, on the number of workers or on what ran before, so resuming at step s needs
no more than s, and any split into micro-batches draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.lm.examples import Example
from pipeline.stage import derive_seed


def epoch_order(ids: Sequence[str], seed: int, epoch: int) -> np.ndarray:
    """(n,) int64, a permutation of range(n): each id is placed by its own hash, derive_seed(seed, "order", epoch, id).

    A second for a million ids: what all hashes begin with is hashed once.
    """
    begun = hashlib.sha256(f"{seed}\x1forder\x1f{epoch}\x1f".encode())

    def digest(name: str) -> bytes:
        one = begun.copy()
        one.update(name.encode())
        return one.digest()[:8]

    keys = np.frombuffer(b"".join(map(digest, ids)), ">u8") >> np.uint64(1)
    return np.argsort(keys, kind="stable")


def global_batches(ids: Sequence[str], seed: int, size: int, start: int, stop: int) -> Iterator[list[int]]:
    """Indices of the global batches of steps start .. stop - 1, cut from the endless stream of epochs."""
    epoch, order = -1, np.zeros(0, np.int64)
    for step in range(start, stop):
        batch = []
        for position in range(step * size, (step + 1) * size):
            if position // len(ids) != epoch:
                epoch = position // len(ids)
                order = epoch_order(ids, seed, epoch)
            batch.append(int(order[position % len(ids)]))
        yield batch


def token_uniforms(examples: Sequence[Example], seed: int, step: int) -> np.ndarray:
    """(N,) float32 in [0, 1) for every completion token, group after group, completion after completion."""
    drawn = [_generator(seed, "tokens", step, e.id).random(e.completion_tokens, np.float32) for e in examples]
    return np.concatenate(drawn)


def column_uniforms(examples: Sequence[Example], seed: int, step: int) -> np.ndarray:
    """(G, K) float32 in [0, 1), K the largest number of completions; a group's numbers do not depend on K."""
    width = max(len(e.completions) for e in examples)
    return np.stack([_generator(seed, "columns", step, e.id).random(width, np.float32) for e in examples])


def _generator(seed: int, *what: object) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *what)))
