"""Local worker processes: how they end, how much memory they took, and one repair of their runner.

Beam's DirectRunner starts its workers through a shell. When the launcher is killed they would go
on with their blocks for as long as those take, beside the workers of the next attempt; so a
worker watches its launcher.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

LAUNCHER = 'H01_BEAM_LAUNCHER_PID'
# Workers are as many as cores. Each with threads of its own for every small product of matrices,
# they spend most of their time waiting for each other.
ONE_THREAD = ('OPENBLAS_NUM_THREADS', 'OPENCV_FOR_THREADS_NUM')
INTERVAL_S = 0.5
# How long a launch may take to end by itself when one of its workers has ended with an error.
GRACE_S = 5.0

_started = threading.Lock()


class Deaths:
    """Worker processes of a launch that have ended with an error."""

    def __init__(self) -> None:
        self._told, self._reason = threading.Event(), ''

    def tell(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._told.set()

    def reason(self, wait_s: float = 0.0) -> str:
        """Why the first of them ended; '' if none is known within so many seconds."""
        self._told.wait(wait_s)
        return self._reason


def prepare_launch(
    on_death: Callable[[str], None] | None = None, deaths: Deaths | None = None
) -> None:
    """Called by the launching process, before it starts workers, which get one thread each.

    Beam waits for ever for a worker process that has died, killed for its memory for example. So
    that is told.

    Beam 2.77 loses data on its way to worker processes: a timer flushes the buffer of a stream
    without holding off writers, and what they add in between is dropped, without an error. Inputs
    of several chunks that take over a second to send are hit. Without the timer, buffers leave
    by size alone.

    Args:
      on_death: called in a thread of its own when a worker process has ended with an error and,
        `GRACE_S` later, the launcher has not ended.
      deaths: is told at once, for a launch that ends by itself.
    """
    os.environ[LAUNCHER] = str(os.getpid())
    for name in ONE_THREAD:
        os.environ.setdefault(name, '1')
    from apache_beam.runners.portability.fn_api_runner import worker_handlers

    if not hasattr(worker_handlers, 'DATA_BUFFER_TIME_LIMIT_MS'):
        raise RuntimeError(
            'this version of Beam has no worker_handlers.DATA_BUFFER_TIME_LIMIT_MS, which must be '
            '0 for worker processes to get all of their input; install the version of Beam that '
            'constraints.txt names'
        )
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0
    if on_death is not None:
        _watch_workers(on_death, deaths or Deaths())


def _watch_workers(on_death: Callable[[str], None], deaths: Deaths) -> None:
    from apache_beam.runners.portability import local_job_service

    sdk_worker = local_job_service.SubprocessSdkWorker
    run = getattr(sdk_worker.run, '__wrapped__', sdk_worker.run)

    @functools.wraps(run)
    def watched(self: Any) -> None:
        try:
            run(self)
        except RuntimeError as error:
            deaths.tell(str(error))
            # At the end of a launch, workers may end with an error too, and nobody minds.
            time.sleep(GRACE_S)
            on_death(str(error))

    sdk_worker.run = watched


def peak_memory_bytes() -> int:
    """Most resident memory that this process has had.

    Not `ru_maxrss`: a new process inherits that of the one that started it.
    """
    with open('/proc/self/status') as file:
        for line in file:
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    raise RuntimeError('/proc/self/status has no VmHWM: the peak memory is unknown')


def exit_with_launcher() -> None:
    """Called in workers: from then on, the process ends soon after its launcher has gone."""
    launcher = int(os.environ.get(LAUNCHER, '0'))
    if not launcher or launcher == os.getpid() or not _started.acquire(blocking=False):
        return
    threading.Thread(target=_watch, args=(launcher,), daemon=True).start()
    if not os.environ.get('H01_BEAM_VERBOSE'):
        sys.stderr = _WithoutFailedBlocks(sys.stderr)


class _WithoutFailedBlocks:
    """A stderr without the traceback of a failed block, which Beam prints in the worker.

    The launcher gets the failure too, and says it in one line.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self._dropped = False

    def write(self, text: str) -> int:
        # print() writes the text, then the end of the line.
        failure = 'BlockError: ' in text
        drop = failure or (self._dropped and text == '\n')
        self._dropped = failure
        return len(text) if drop else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _watch(launcher: int) -> None:
    born = _birth(launcher)
    while born is not None and _birth(launcher) == born:
        time.sleep(INTERVAL_S)
    # Nothing to clean up: whatever a block had not finished is done again.
    os._exit(1)


def _birth(pid: int) -> bytes | None:
    """When a process started, in clock ticks: tells it from a later one with its number."""
    try:
        with open(f'/proc/{pid}/stat', 'rb') as file:
            # After the name, which is in parentheses and may hold spaces.
            fields = file.read().rpartition(b')')[2].split()
    except OSError:
        return None
    return None if fields[0] == b'Z' else fields[19]
