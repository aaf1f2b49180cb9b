"""Prism, Beam's own portable runner: one Go program."""

from __future__ import annotations

import json
import os
from typing import Self

from h01_beam.testing.engines.processes import (
    MissingEngineError,
    Processes,
    engines_folder,
    free_port,
    listens,
    write_boot,
)


class Prism(Processes):
    """A Prism on loopback that starts its workers as processes.

    Args:
      folder: for logs.

    Raises:
      MissingEngineError: Prism was not built.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        binary = engines_folder() / 'prism'
        if not binary.exists():
            raise MissingEngineError(f'no Prism at {binary}: run deploy/engines/fetch prism')
        super().__init__(folder)
        self._binary, self._port = str(binary), free_port()

    def __enter__(self) -> Self:
        command = [self._binary, '-serve_http=false', f'-job_port={self._port}', '-log_kind=text']
        self.start('prism', command, {})
        try:
            self.wait_for('Prism', lambda: listens(self._port))
        except BaseException:
            self.stop()
            raise
        return self

    def beam_flags(self) -> list[str]:
        """Flags that send a pipeline here."""
        return portable_flags(self._port, str(write_boot(self.folder)))


def portable_flags(job_port: int, boot: str) -> list[str]:
    """Flags for a job server on loopback whose engine starts workers by the command `boot`."""
    return [
        '--runner=PortableRunner',
        f'--job_endpoint=127.0.0.1:{job_port}',
        '--environment_type=PROCESS',
        f'--environment_config={json.dumps({"command": boot})}',
        # Else Flink ends workers whenever no stage needs them, and starts others for the next.
        '--environment_cache_millis=600000',
    ]
