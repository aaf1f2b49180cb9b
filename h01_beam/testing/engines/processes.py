"""Processes of an engine: started together, ended together, with their output in files."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[3]


class MissingEngineError(RuntimeError):
    """What an engine is made of is not on this machine; the message says how to fetch it."""


def engines_folder() -> Path:
    """Where `deploy/engines/fetch` puts engines: `.engines`, or H01_BEAM_ENGINES."""
    return Path(os.environ.get('H01_BEAM_ENGINES') or ROOT / '.engines')


class Processes:
    """The processes of an engine, a context manager; output goes to FOLDER/NAME.log.

    Args:
      folder: for logs and for what the engine writes; made if absent.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Starts a process under a name."""
        with open(self.folder / f'{name}.log', 'ab') as log:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **env}
            )

    def pid(self, name: str) -> int:
        """Number of a process, for those who want to kill it."""
        return self._running[name].pid

    def wait_for(self, what: str, ready: Callable[[], bool], limit_s: float = 180) -> None:
        """Waits until `ready()`.

        Raises:
          RuntimeError: a process ended, or the time is up; the message holds the end of its log.
        """
        deadline = time.monotonic() + limit_s
        while not ready():
            ended = [name for name, p in self._running.items() if p.poll() is not None]
            if ended:
                raise RuntimeError(f'{what}: {ended[0]} ended: {self._tail(ended[0])}')
            if time.monotonic() > deadline:
                logs = '; '.join(f'{name}: {self._tail(name)}' for name in self._running)
                raise RuntimeError(f'{what}: not there after {limit_s} s; logs: {logs}')
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends all processes."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()

    def _tail(self, name: str) -> str:
        return (self.folder / f'{name}.log').read_bytes()[-1500:].decode(errors='replace')

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def write_boot(folder: Path) -> Path:
    """Writes the command by which an engine starts a worker: this Python, this checkout."""
    path = folder / 'boot'
    path.write_text(
        '#!/bin/sh\n'
        f'export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}\n'
        f'exec {shlex.quote(sys.executable)} -m h01_beam.boot "$@"\n'
    )
    path.chmod(0o755)
    return path


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody answers at a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(('127.0.0.1', port)) == 0
