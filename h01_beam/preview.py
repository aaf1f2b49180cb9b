"""Which blocks would run, found before anything does: what `pipelines.reprocess` shows first.

A block would run if its key is not that of its marker, or if it reads what such a block writes. Of
stages over all blocks at once nothing is known before they have run, nor of what their results
change: so this is the least that will run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from h01_beam.geometry import Triple


class Touched:
    """Blocks that would run, by the ledger of their stage, and the tables that they write."""

    def __init__(self) -> None:
        self._blocks: dict[str, set[Triple]] = {}
        self._writers: dict[str, str] = {}

    def begin(self, ledger: str, tables: Iterable[str]) -> None:
        """From here on, blocks of this stage, which writes these tables."""
        self._blocks[ledger] = set()
        self._writers |= dict.fromkeys(tables, ledger)

    def add(self, ledger: str, index: Triple) -> None:
        self._blocks[ledger].add(index)

    def meets(self, ledger: str, blocks: Iterable[Triple]) -> bool:
        """Whether one of these blocks of a stage would run."""
        return not self._blocks.get(ledger, set()).isdisjoint(blocks)

    def rows(self, table: str, blocks: Iterable[Triple]) -> bool:
        """Whether one of the blocks that wrote these parts of a table would run."""
        return self.meets(self._writers.get(table, ''), blocks)


@dataclasses.dataclass(frozen=True)
class StagePreview:
    """Of a stage: how many blocks it has, and how many of them would run, at least."""

    name: str
    blocks: int
    touched: int


def preview(processes: Iterable[Any]) -> Iterator[StagePreview]:
    """Yields one for each stage that goes block by block; reads all of their markers.

    Args:
      processes: `Run.processes` of a pipeline that was built, not dry, and has not run.
    """
    touched = Touched()
    for process in processes:
        process.open_inputs()
        touched.begin(process.ledger.path, process.tables)
        count = 0
        for linear in range(len(process.grid)):
            if process.would_run(linear, touched):
                touched.add(process.ledger.path, process.grid.index(linear))
                count += 1
        yield StagePreview(process.stage, len(process.grid), count)
