"""Blocks that cannot be done: which are left out, why, and what becomes of those that need them.

A block that fails as often as the policy allows is *quarantined*: it leaves a note in place of its
marker. The rest of the run is done. What would read from it is *blocked*, as its marker and its
rows are gone: later blocks by their read boxes, stages over all blocks as a whole. Nothing is
computed from holes. The report lists both kinds, and the run ends as failed.

    LEDGER/quarantine/z/y_x.json   {"key", "attempts", "error", "traceback"}

The note holds for one key: while its inputs are the same, the block is not tried again unless that
is asked for (`--retry_quarantined`). Other inputs or parameters make it another block.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from h01_beam import storage
from h01_beam.geometry import Triple
from h01_beam.ledger import Ledger

QUARANTINED, BLOCKED = 'quarantined', 'blocked'
# Of each stage, so many are listed in full; all are counted.
LISTED = 100
WAY_OUT = (
    'mend the cause, then give the same command with --retry_quarantined: finished blocks are kept'
)


class QuarantinedBlockError(RuntimeError):
    """A run is done but for some blocks; the message names the first and the way out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """Why a block is in quarantine.

    Attributes:
      key: hash of what it depended on, as in a marker; '' if it failed before that was known.
      attempts: how often it was tried.
      error: of the last attempt, in one line that names the stage and the block.
      traceback: of the last attempt.
    """

    key: str
    attempts: int
    error: str
    traceback: str

    def write(self, ledger: Ledger, index: Triple) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=1)
        storage.write_bytes(_file(ledger, index), text.encode())

    @classmethod
    def read(cls, ledger: Ledger, index: Triple) -> Note | None:
        """That of a block, or None if it is not in quarantine."""
        try:
            return cls(**json.loads(storage.read_bytes(_file(ledger, index))))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def lift(ledger: Ledger, index: Triple) -> None:
    """Takes a block out of quarantine."""
    storage.delete(_file(ledger, index))


def notes(ledger: Ledger) -> Iterable[str]:
    """Paths of all notes of a stage."""
    return storage.list_files(storage.join(ledger.path, 'quarantine'), '.json')


def hole(
    kind: str, index: Triple | tuple[()], note: Note | None, error: str = ''
) -> dict[str, Any]:
    """What the report says of a block that was left out, as JSON-ready values.

    Args:
      kind: QUARANTINED or BLOCKED.
      index: of the block; () for a stage over all blocks.
      note: of its quarantine.
      error: in one line that names the stage and the block, where there is no note.
    """
    if note is None:
        return {'kind': kind, 'block': list(index), 'error': error}
    return {'kind': kind, 'block': list(index), 'error': note.error, 'attempts': note.attempts,
            'traceback': note.traceback}  # fmt: skip


def holes_of(stages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the summaries of stages list, each with its `stage`; quarantined blocks first."""
    listed = [
        {'stage': stage, **hole} for stage, summary in stages.items() for hole in
        summary.get('holes', ())
    ]  # fmt: skip
    return sorted(listed, key=lambda hole: hole['kind'] != QUARANTINED)


def explain(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """One line that says which blocks are missing; '' if none is."""
    listed = holes_of(stages)
    if not listed:
        return ''
    counts = {
        kind: sum(summary.get(f'blocks_{kind}', 0) for summary in stages.values())
        for kind in (QUARANTINED, BLOCKED)
    }
    return (
        f'{listed[0]["error"]}; all else is done but {counts[QUARANTINED]} quarantined blocks and '
        f'{counts[BLOCKED]} that wait for them, which the report lists; {WAY_OUT}'
    )


def _file(ledger: Ledger, index: Triple) -> str:
    z, y, x = index
    return storage.join(ledger.path, 'quarantine', str(z), f'{y}_{x}.json')
