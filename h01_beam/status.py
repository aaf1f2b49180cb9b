"""How far a run is, read from its ledger alone: for any runner, from anywhere, while it goes on."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from h01_beam import storage
from h01_beam.ledger import Ledger, StageRecord
from h01_beam.run import StagePlan, read_manifest

# Folders of a run directory that are no runs within it.
OWN_FOLDERS = ('volumes', 'tables', 'ledger', 'figures', 'generations', 'history')
# Blocks per minute are those of this long, or of all the time that there was, if that is less.
WINDOW_S = 600.0
# Failures that are shown.
SHOWN = 3

State = Literal['waiting', 'running', 'done', 'quarantined']


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageStatus:
    """How far a stage is.

    Attributes:
      name: of the stage; INNER/STAGE is one of a run within the run.
      blocks: in all.
      done: so many have markers that are no older than the stage's configuration.
      quarantined: so many were given up.
      per_minute: blocks in the last minutes, or, of a stage that is done, in all of its time; 0
        where none was finished.
      last: when the youngest marker was written, seconds since 1970; None: there is none.
      failures: the first lines of what went wrong with blocks that were given up.
    """

    name: str
    blocks: int
    done: int
    quarantined: int
    per_minute: float
    last: float | None
    failures: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """Blocks that are neither done nor given up."""
        return max(0, self.blocks - self.done - self.quarantined)

    @property
    def left_seconds(self) -> float | None:
        """At the speed of the last minutes; None where there is no speed."""
        if not self.left:
            return 0.0
        return 60 * self.left / self.per_minute if self.per_minute else None

    @property
    def state(self) -> State:
        """What the stage does."""
        if self.left:
            return 'running' if self.done or self.quarantined else 'waiting'
        return 'quarantined' if self.quarantined else 'done'


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
      path: of the run.
      job: which.
      reported: whether the report has been written since the last marker was.
      stages: in the order in which they were made.
      now: when it was looked, seconds since 1970.
    """

    path: str
    job: str
    reported: bool
    stages: tuple[StageStatus, ...]
    now: float

    @property
    def last(self) -> float | None:
        """When the youngest marker of all was written."""
        return max((s.last for s in self.stages if s.last is not None), default=None)


def plans_of(run_dir: str, only: Sequence[str] = ()) -> list[StagePlan]:
    """The stages of a run, as their ledgers have them, in the order in which they were made.

    Args:
      run_dir: local folder or gs:// URL.
      only: names of stages, if not all are wanted.

    Raises:
      FileNotFoundError: there is no run.
      ValueError: it has no stage of that name.
    """
    read_manifest(run_dir)
    found = sorted(_records(run_dir, ''), key=lambda pair: (pair[0].since, pair[1]))
    names = [name for _, name, _ in found]
    for name in only:
        if name not in names:
            raise ValueError(
                f'--stage {name!r}: the run has no such stage; it has {", ".join(names) or "none"}'
            )
    return [
        # A graph stage has no configuration of its blocks: they share one marker.
        StagePlan(name=name, blocks=len(record.grid) if record.config else 0, read_bytes=0,
                  write_bytes=0, memory_bytes=0, ledger=ledger, since=record.since)
        for record, name, ledger in found
        if not only or name in only
    ]  # fmt: skip


def read_status(run_dir: str, now: float | None = None, only: Sequence[str] = ()) -> RunStatus:
    """How far a run is; lists all its markers once, and reads none.

    Args:
      run_dir: local folder or gs:// URL.
      now: seconds since 1970; None: the clock's.
      only: names of stages, if not all are wanted.

    Raises:
      FileNotFoundError: there is no run.
      ValueError: it has no stage of that name.
    """
    now = time.time() if now is None else now
    stages = tuple(_stage_status(plan, now) for plan in plans_of(run_dir, only))
    last = max((s.last for s in stages if s.last is not None), default=0.0)
    reported = storage.written_at(storage.join(run_dir, 'report.json'))
    return RunStatus(
        path=run_dir, job=read_manifest(run_dir)['job'], stages=stages, now=now,
        reported=reported is not None and reported >= last,
    )  # fmt: skip


def describe(status: RunStatus) -> str:
    """The status as a table."""
    lines = [
        f'{status.path}: {status.job}, {"finished" if status.reported else "not finished"}',
        f'{"stage":<32}{"blocks":>12}{"done":>12}{"left":>12}{"quarantined":>13}{"per min":>10}'
        f'{"time left":>12}{"last block":>14}  state',
    ]
    for stage in status.stages:
        left = stage.left_seconds
        age = '-' if stage.last is None else f'{clock(status.now - stage.last)} ago'
        lines.append(
            f'{stage.name:<32}{stage.blocks:>12,}{stage.done:>12,}{stage.left:>12,}'
            f'{stage.quarantined:>13,}{stage.per_minute:>10.1f}'
            f'{"-" if left is None else clock(left):>12}{age:>14}  {stage.state}'
        )
    for stage in status.stages:
        lines += [f'failed: {stage.name}: {failure}' for failure in stage.failures]
    if status.last is not None and not status.reported:
        lines.append(f'The last block of all ended {clock(status.now - status.last)} ago.')
    return '\n'.join(lines)


def as_json(status: RunStatus) -> dict[str, Any]:
    """The status for other programs."""
    stages = [
        {**dataclasses.asdict(s), 'left': s.left, 'left_seconds': s.left_seconds, 'state': s.state}
        for s in status.stages
    ]
    return {'path': status.path, 'job': status.job, 'finished': status.reported,
            'now': status.now, 'stages': stages}  # fmt: skip


def clock(seconds: float) -> str:
    """A length of time: 12 s, 3:05 min, 2:10 h, 4.5 days."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f'{whole} s'
    if whole < 3600:
        return f'{whole // 60}:{whole % 60:02d} min'
    if whole < 2 * 86400:
        return f'{whole // 3600}:{whole % 3600 // 60:02d} h'
    return f'{whole / 86400:.1f} days'


def _records(path: str, prefix: str) -> Iterator[tuple[StageRecord, str, Ledger]]:
    """Stages of a run directory and of those within it."""
    for stage in storage.list_folders(storage.join(path, 'ledger')):
        ledger = Ledger(storage.join(path, 'ledger', stage))
        record = StageRecord.read(ledger)
        if record is not None:
            yield record, prefix + stage, ledger
    for name in storage.list_folders(path):
        if name not in OWN_FOLDERS:
            yield from _records(storage.join(path, name), f'{prefix}{name}/')


def _stage_status(plan: StagePlan, now: float) -> StageStatus:
    assert plan.since is not None, 'records say since when'
    blocks = plan.blocks or 1
    done, recent, first, last = _count(_times(plan), plan.since, now)
    if first is None or last is None:
        span = 0.0
    elif done >= blocks:  # Over: its own time, from its first block to its last.
        recent, span = done, last - first
    else:
        span = min(WINDOW_S, now - first)
    failed = list(plan.ledger.quarantined())
    return StageStatus(
        name=plan.name,
        blocks=blocks,
        done=min(done, blocks),
        quarantined=len(failed),
        per_minute=60 * recent / span if span > 0 else 0.0,
        last=last,
        failures=tuple(_failure(path) for path in failed[:SHOWN]),
    )


def _times(plan: StagePlan) -> Iterable[float]:
    if plan.blocks:
        return plan.ledger.times_written()
    whole = storage.written_at(storage.join(plan.ledger.path, 'marker.json'))
    return [] if whole is None else [whole]


def _count(
    times: Iterable[float], since: float, now: float
) -> tuple[int, int, float | None, float | None]:
    """Markers since a time, those of the last minutes, the first and the last of them."""
    done = recent = 0
    first = last = None
    for written in times:
        if written < since:
            continue
        done += 1
        recent += written >= now - WINDOW_S
        first = written if first is None else min(first, written)
        last = written if last is None else max(last, written)
    return done, recent, first, last


def _failure(path: str) -> str:
    """Of a block that was given up: its name, and the last line of what was recorded of it."""
    block = posixpath.basename(path).removesuffix('.json')
    try:
        record = json.loads(storage.read_bytes(path))
    except (OSError, ValueError):
        return f'block {block}: its record cannot be read'
    told = record.get('error') or record.get('traceback') or '' if isinstance(record, dict) else ''
    return f'block {block}: {str(told).strip().splitlines()[-1] if told else "no reason recorded"}'
