"""Live views: of a run, read from its ledger stage by stage, and of one long count."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from absl import logging
from rich import console, progress

from h01_beam import storage
from h01_beam.run import StagePlan

# Listing a bucket costs requests; a local folder costs nothing.
LOCAL_INTERVAL_S = 0.5
BUCKET_INTERVAL_S = 30.0
# Of millions of blocks, counting takes long: not more than this share of the time goes into it.
COUNTING_SHARE = 0.1


class LedgerProgress:
    """Context manager that shows one bar per stage; quiet when stderr is not a terminal.

    Blocks that an earlier attempt finished under the same configuration count as done.
    """

    def __init__(self, plans: Sequence[StagePlan], enabled: bool | None = None):
        self._plans = [plan for plan in plans if plan.blocks]
        self._enabled = sys.stderr.isatty() if enabled is None else enabled
        self._stop = threading.Event()
        self._since = time.time()
        self._bars = _bars('blocks')

    def __enter__(self) -> LedgerProgress:
        if self._enabled:
            self._tasks = {
                plan.name: self._bars.add_task(plan.name, total=plan.blocks, start=False)
                for plan in self._plans
            }
            self._bars.start()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._enabled:
            self._stop.set()
            self._thread.join(timeout=5)
            self._try_update()
            self._bars.stop()

    @property
    def finished(self) -> bool:
        """Whether all blocks of all stages were done when they were last counted."""
        return all(task.finished for task in self._bars.tasks)

    def update(self) -> None:
        """Counts the markers of every stage once."""
        for plan in self._plans:
            task = self._tasks[plan.name]
            if self._bars.tasks[task].finished:
                continue
            done = count_done(plan, self._since)
            if done:
                self._bars.start_task(task)
            self._bars.update(task, completed=done)

    def _watch(self) -> None:
        remote = any(storage.is_remote(plan.ledger.path) for plan in self._plans)
        least = pause = BUCKET_INTERVAL_S if remote else LOCAL_INTERVAL_S
        while not self._stop.wait(pause):
            started = time.monotonic()
            self._try_update()
            pause = max(least, (time.monotonic() - started) / COUNTING_SHARE)

    def _try_update(self) -> None:
        try:
            self.update()
        except OSError as error:  # A view that fails must not end the work that it shows.
            logging.warning('progress: cannot read the ledger: %s', error)


@contextlib.contextmanager
def counting(
    what: str, total: int, unit: str, done: int = 0, enabled: bool | None = None
) -> Iterator[Callable[[], None]]:
    """Shows a bar while something is counted; quiet when stderr is not a terminal.

    Args:
      what: is done.
      total: of what is counted.
      unit: of what is counted, plural.
      done: so many were done before.
      enabled: whether to show it; None asks the terminal.

    Yields:
      what to call after each one.
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield lambda: None
        return
    with _bars(unit) as bars:
        task = bars.add_task(what, total=total, completed=done)
        yield lambda: bars.advance(task)


def _bars(unit: str) -> progress.Progress:
    return progress.Progress(
        progress.TextColumn('{task.description:<28}'),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(unit),
        progress.TimeElapsedColumn(),
        progress.TextColumn('left'),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
    )


def count_done(plan: StagePlan, since: float) -> int:
    """Blocks of a stage that are done: markers since it was first planned so, or `since`."""
    markers = plan.ledger.markers_written(since if plan.since is None else plan.since)
    return min(plan.blocks, sum(1 for _ in markers))
