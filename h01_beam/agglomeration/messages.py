"""Columns of 64-bit integers as bytes: what travels between the steps of a graph algorithm.

Beam moves bytes at the speed of memory copies; a dictionary of arrays would be pickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_FIXED_WORDS = 3


@dataclasses.dataclass(frozen=True)
class Message:
    """A few columns with a note of what they are.

    Attributes:
      kind: what the columns mean; the algorithm numbers its kinds.
      source: number of whoever sent it (a shard, a partition).
      columns: one-dimensional, 64-bit; lengths may differ. uint64 after `unpack`.
    """

    kind: int
    source: int
    columns: tuple[NDArray[np.uint64] | NDArray[np.int64], ...]

    def pack(self) -> bytes:
        lengths = [len(column) for column in self.columns]
        header = np.array([self.kind, self.source, len(lengths), *lengths], np.uint64)
        columns = [np.ascontiguousarray(column).view(np.uint64) for column in self.columns]
        return np.concatenate([header, *columns]).tobytes()

    @classmethod
    def unpack(cls, data: bytes) -> Message:
        words = np.frombuffer(data, np.uint64)
        kind, source, count = words[:_FIXED_WORDS].tolist()
        start = _FIXED_WORDS + count
        columns = []
        for length in words[_FIXED_WORDS:start].tolist():
            columns.append(words[start : start + length])
            start += length
        return cls(kind, source, tuple(columns))

    @property
    def rows(self) -> int:
        """Length of the first column."""
        return len(self.columns[0])


def unpack_all(messages: Iterable[bytes]) -> list[Message]:
    """Unpacks messages, without copying their columns."""
    return [Message.unpack(data) for data in messages]


def columns_of(messages: Sequence[Message], kind: int, count: int) -> list[NDArray[np.uint64]]:
    """The first `count` columns of all messages of one kind, each concatenated in their order."""
    chosen = [message.columns for message in messages if message.kind == kind]
    empty = np.zeros(0, np.uint64)
    return [np.concatenate([empty, *(c[i].view(np.uint64) for c in chosen)]) for i in range(count)]
