"""One process at a time for a run directory, and no lock that outlives its owner.

On a local disk the kernel holds the lock (flock) and frees it when the process ends, however it
ends. In a bucket the lock is an object that its owner renews; one that has not been renewed for
`STALE_S` is taken over. It is written on condition of its generation, so only one can win.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from typing import Any, Self

from h01_beam import objects, storage

FILE = 'lock.json'
RENEW_S, STALE_S = 30.0, 180.0


class LockedError(OSError):
    """Somebody else holds the lock; the message names who, and since when."""


class Lock:
    """A context in which this process alone works on a run directory.

    Raises:
      LockedError: on entry, if another process does.
    """

    def __init__(self, run_dir: str):
        self._path = storage.join(run_dir, FILE)
        self._owner = {'host': socket.gethostname(), 'pid': os.getpid(), 'since': time.time()}
        self._file: Any = None
        self._generation = 0
        self._ended, self._lost = threading.Event(), False
        self._renewed_at, self._renewing = time.monotonic(), threading.Lock()

    def __enter__(self) -> Self:
        (self._enter_bucket if storage.is_remote(self._path) else self._enter_local)()
        return self

    def __exit__(self, *_: object) -> None:
        with self._renewing:
            self._ended.set()
        if self._file is not None:
            # Not deleted: another process may already wait at this very file.
            self._file.truncate(0)
            self._file.close()
            return
        if not self._lost:
            objects.delete_if(self._path, self._generation)

    def check(self) -> None:
        """Raises a LockedError if the lock has been lost meanwhile, for want of renewal."""
        if self._file is None:
            self._renew()
        if self._lost:
            raise LockedError(f'{self._path}: was taken over by another process')

    def _enter_local(self) -> None:
        path = storage.local_path(self._path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, 'a+')
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            text = self._file.read()
            self._file.close()
            raise self._refusal(text) from None
        self._file.truncate(0)
        self._file.write(self._text())
        self._file.flush()

    def _enter_bucket(self) -> None:
        found = objects.write_if(self._path, self._text().encode(), 0)
        if found is None:
            blob = objects.metadata(self._path)
            text = objects.read(self._path).decode()
            if time.time() - blob.updated.timestamp() < STALE_S:
                raise self._refusal(text)
            found = objects.write_if(self._path, self._text().encode(), blob.generation)
            if found is None:
                raise self._refusal(text)
        self._generation, self._renewed_at = found, time.monotonic()
        threading.Thread(target=self._go_on_renewing, daemon=True).start()

    def _go_on_renewing(self) -> None:
        while not self._ended.wait(RENEW_S) and not self._lost:
            # A bucket that does not answer may do so again before the lock is stale.
            with contextlib.suppress(OSError):
                self._renew()

    def _renew(self) -> None:
        with self._renewing:
            if self._ended.is_set() or self._lost:
                return
            if time.monotonic() - self._renewed_at > STALE_S:
                self._lost = True
                return
            asked = time.monotonic()
            found = objects.write_if(self._path, self._text().encode(), self._generation)
            if found is None:
                self._lost = True
            else:
                self._generation, self._renewed_at = found, asked

    def _text(self) -> str:
        return json.dumps({**self._owner, 'renewed': time.time()})

    def _refusal(self, text: str) -> LockedError:
        try:
            owner = json.loads(text)
            since = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(owner['since']))
            who = f'process {owner["pid"]} on {owner["host"]}, since {since}'
        except (ValueError, KeyError):
            who = 'another process'
        return LockedError(
            f'{self._path} is held by {who}: wait until it ends; one that has died frees it by '
            f'itself (in a bucket after {STALE_S:.0f} s)'
        )
