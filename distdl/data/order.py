"""The sample order: a pure function of (data set fingerprint, seed, epoch, position).

Nothing about workers, ranks, batch sizes or restarts enters it. Large sets use a keyed bijection of [0, rows): six
Feistel rounds over Z_a x Z_2^k with cycle walking, which needs no memory and answers for any position at once (Black
and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Small sets, where a Feistel network is measurably not
uniform, sort the rows by a keyed hash. Neither uses NumPy's random generators, whose streams may change between
versions. **The order must never change**: a checkpoint stores only a position, and tests pin its values.
"""

from __future__ import annotations

import hashlib
import threading

import numpy as np

from distdl.data.native import HALF, native
from distdl.errors import InputError

SORTED_ROWS = 65_536  # below this a permutation is sorted and kept; at 6 rows a Feistel network is visibly biased
ROUNDS = 6
CHUNK_ROWS = 1 << 15  # positions per vectorised pass: its temporaries stay in the L2 cache
CACHED_ROWS = 1 << 18  # rows of sorted permutations that are kept
MAX_ROWS = 1 << 62  # both halves of the Feistel network are held in 32 bits

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser of uint64 values (Steele et al. 2014): a bijection that scatters neighbours."""
    z = values.astype(np.uint64)
    z += _GOLDEN
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def keyed_hash(key: int, indices: np.ndarray) -> np.ndarray:
    """One uint64 per index under a 64-bit key; the same on every machine and in every version."""
    return splitmix64(splitmix64(np.asarray(indices).astype(np.uint64)) ^ np.uint64(key))


class Order:
    """The order of the rows of one split, epoch after epoch. Safe to use from several threads.

    `rows`: rows in the split, 1 to 2^62. `seed`: any integer. `fingerprint`: of the data set, so that two sets do not
    share an order. `shuffle`: "global" mixes the whole split, "none" keeps the natural order.
    """

    def __init__(self, rows: int, seed: int, fingerprint: str = "", shuffle: str = "global"):
        if shuffle not in ("global", "none"):
            raise InputError(f"shuffle is {shuffle!r}", allowed="global, none")
        if not 0 < rows <= MAX_ROWS:
            raise InputError(f"an order needs 1 to {MAX_ROWS:,} rows, there are {rows:,}")
        self.rows, self.seed, self.fingerprint, self.shuffle = rows, seed, fingerprint, shuffle
        self._right_bits = max(1, (rows - 1).bit_length() // 2)
        self._left_size = -(-rows // (1 << self._right_bits))
        self._rows = np.arange(rows if rows < SORTED_ROWS else 0, dtype=np.uint64)
        self._scattered = splitmix64(self._rows)
        self._sorted: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def indices(self, epoch: int, start: int, count: int) -> np.ndarray:
        """Row numbers at the positions start .. start + count - 1 of an epoch: (count,) int64."""
        if start < 0 or count < 0 or start + count > self.rows:
            raise ValueError(f"positions {start} to {start + count} are not inside an epoch of {self.rows} rows")
        offsets = np.arange(start, start + count, dtype=np.int64)
        return self._in_epoch(epoch, offsets) if count else offsets

    def stream_indices(self, position: int, count: int) -> np.ndarray:
        """Row numbers of a slice of the endless stream of epochs, which may straddle epochs: (count,) int64."""
        epochs, offsets = np.divmod(np.arange(position, position + count, dtype=np.int64), self.rows)
        return self.at(epochs, offsets)

    def at(self, epochs: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Row numbers for pairs of an epoch and a position in it, both (n,) int64: (n,) int64."""
        if self.shuffle == "none" or not len(epochs):
            return offsets
        first, last = int(epochs.min()), int(epochs.max())
        if first == last:
            return self._in_epoch(first, offsets)
        if (
            self.rows < SORTED_ROWS and last - first < 8
        ):  # the usual group of batches; np.unique would cost more than the rest
            joined = np.concatenate(self._permutations(list(range(first, last + 1))))
            return joined.take((epochs - first) * self.rows + offsets)
        distinct, which = np.unique(epochs, return_inverse=True)
        if self.rows < SORTED_ROWS:
            return np.stack(self._permutations(distinct.tolist()))[which, offsets]
        result = np.empty(len(offsets), np.int64)
        for i, epoch in enumerate(distinct.tolist()):
            result[which == i] = self._in_epoch(epoch, offsets[which == i])
        return result

    def _in_epoch(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        if self.shuffle == "none":
            return offsets
        if self.rows < SORTED_ROWS:
            return self._permutations([epoch])[0][offsets]
        keys = np.frombuffer(self._key(epoch, 4 * ROUNDS), "<u4").astype(np.uint32)
        if self._left_size < HALF and (fast := native()):
            result = np.array(offsets, np.int64, order="C")
            fast.order(result, self.rows, self._left_size, self._right_bits, keys)
            return result
        result = np.empty(len(offsets), np.int64)
        for start in range(0, len(offsets), CHUNK_ROWS):
            result[start : start + CHUNK_ROWS] = self._walk(offsets[start : start + CHUNK_ROWS].astype(np.uint64), keys)
        return result

    def _key(self, epoch: int, size_bytes: int) -> bytes:
        text = f"distdl-order-1|{self.fingerprint}|{self.seed}|{epoch}"
        return hashlib.blake2b(text.encode(), digest_size=size_bytes).digest()

    def _permutations(self, epochs: list[int]) -> list[np.ndarray]:
        """The sorted permutation of each epoch, from the cache or made, all missing ones in one sort: tiny sets get
        through many epochs in one group of batches."""
        with self._lock:
            found = {e: self._sorted[e] for e in epochs if e in self._sorted}
            missing = [e for e in epochs if e not in found]
            if missing:
                keys = np.frombuffer(b"".join(self._key(e, 8) for e in missing), "<u8").astype(np.uint64)
                # 48 bits of hash, the row itself in the low 16: ten times faster to sort than an argsort, and ties
                # are settled.
                low = np.uint64(SORTED_ROWS - 1)
                hashed = splitmix64(self._scattered[None, :] ^ keys[:, None])
                ranked = np.sort((hashed & ~low) | self._rows, axis=1) & low
                found.update(zip(missing, ranked.astype(np.int64), strict=True))
                self._sorted.update(found)
                while len(self._sorted) > max(2, CACHED_ROWS // self.rows):
                    del self._sorted[next(iter(self._sorted))]  # oldest first
            return [found[e] for e in epochs]

    def _walk(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Encrypt until every value is a row: fewer than 2^k values lie outside, so a second pass is rare."""
        result = self._encrypt(values, keys)
        outside = np.flatnonzero(result >= self.rows)
        while outside.size:
            result[outside] = self._encrypt(result[outside], keys)
            outside = outside[result[outside] >= self.rows]
        return result

    def _encrypt(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Six Feistel rounds: left half in Z_a (addition mod a), right half in Z_2^k (addition mod 2^k)."""
        bits, size = np.uint64(self._right_bits), np.uint64(self._left_size)
        mask = np.uint64((1 << self._right_bits) - 1)
        left, right = values >> bits, (values & mask).astype(np.uint32)
        for i in range(0, ROUNDS, 2):
            left += (_mix(right, keys[i]).astype(np.uint64) * size) >> np.uint64(32)
            left -= np.where(left >= size, size, np.uint64(0))
            right += _mix(left.astype(np.uint32), keys[i + 1]) >> np.uint32(32 - self._right_bits)
            right &= np.uint32(mask)
        return (left << bits) | right


def _mix(values: np.ndarray, key: np.uint32) -> np.ndarray:
    """A keyed hash of uint32 values with murmur3's finaliser."""
    mixed = (values ^ key) * np.uint32(0x9E3779B1)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed
