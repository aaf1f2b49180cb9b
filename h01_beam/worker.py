"""Local worker processes end with the process that launched them.

Beam's DirectRunner starts its workers through a shell. When the launcher is killed they would go
on with their blocks for as long as those take, beside the workers of the next attempt.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

LAUNCHER = 'H01_BEAM_LAUNCHER_PID'
INTERVAL_S = 0.5

_started = threading.Lock()


def announce_launcher() -> None:
    """Called by the launching process, before it starts workers."""
    os.environ[LAUNCHER] = str(os.getpid())


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
