"""A permutation of the integers below any number, of which each place is worked out where it is asked for."""

import hashlib
from functools import lru_cache
from math import isqrt

import numpy as np
import numpy.typing as npt

ROUNDS = 6
Numbers = npt.NDArray[np.int64]
Unsigned = npt.NDArray[np.uint64]


def permute(places: Numbers, size: int, key: bytes) -> Numbers:
    """Image of each place in [0, size) under the permutation of [0, size) that `key` names.

    A Feistel network on a grid of at least `size` cells, walked until it lands inside: no table, no memory, any size.

    Source: J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, 2002 (generalized Feistel, cycle walking).
    """
    return _walk(places, size, key, forward=True)


def unpermute(images: Numbers, size: int, key: bytes) -> Numbers:
    """The inverse of `permute`."""
    return _walk(images, size, key, forward=False)


def _walk(values: Numbers, size: int, key: bytes, *, forward: bool) -> Numbers:
    rows = isqrt(size - 1) + 1
    columns = -(-size // rows)
    keys = _round_keys(key)
    out = _feistel(values.astype(np.uint64), rows, columns, keys, forward)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], rows, columns, keys, forward)
    return out.astype(np.int64)


def _feistel(values: Unsigned, rows: int, columns: int, keys: tuple[int, ...], forward: bool) -> Unsigned:
    row = values // np.uint64(columns)
    column = values - row * np.uint64(columns)
    for number in range(ROUNDS) if forward else reversed(range(ROUNDS)):
        if number % 2 == 0:
            row = _shift(row, _mix(column, keys[number]), rows, forward)
        else:
            column = _shift(column, _mix(row, keys[number]), columns, forward)
    return row * np.uint64(columns) + column


def _shift(values: Unsigned, amounts: Unsigned, modulus: int, forward: bool) -> Unsigned:
    """Values below `modulus`, moved on or back by the amounts, round it. numpy divides faster than it does %."""
    size = np.uint64(modulus)
    amounts = amounts - amounts // size * size
    moved = values + (amounts if forward else size - amounts)
    turned: Unsigned = np.minimum(moved, moved - size)  # what is below zero has wrapped round to the highest numbers
    return turned


def _mix(values: Unsigned, key: int) -> Unsigned:
    """64 well-mixed bits for each value. Source: the finalizer of SplitMix64, S. Vigna, 2015."""
    mixed = values ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@lru_cache(maxsize=16)
def _round_keys(key: bytes) -> tuple[int, ...]:
    digest = hashlib.blake2b(key, digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))
