"""A bucket on loopback, for tests: starts the emulator of `h01_beam.testing.bucket_server`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from h01_beam import config as config_lib
from h01_beam.testing.faults import FaultPlan

# Control requests go here; no bucket's name starts with an underscore.
CONTROL = '/_faults'


class Emulator:
    """The address of a running emulator, and what it can be told."""

    def __init__(self, address: str):
        self.address = address

    def make_bucket(self, name: str) -> str:
        """Makes an empty bucket; returns its URL, gs://NAME."""
        self._request('/storage/v1/b?project=test', 'POST', {'name': name})
        return f'gs://{name}'

    def inject(self, plan: FaultPlan) -> None:
        """Starts a plan of faults, in place of the one before."""
        self._request(CONTROL, 'PUT', config_lib.as_dict(plan))

    def note(self, kind: str) -> None:
        """Counts a fault that was made elsewhere."""
        self._request(f'{CONTROL}/{kind}', 'POST', {})

    def faults(self) -> dict[str, int]:
        """The faults that the plan has made so far, by kind."""
        counts: dict[str, int] = json.loads(self._request(CONTROL, 'GET'))
        return counts

    def environment(self, folder: Path) -> dict[str, str]:
        """What a process needs to use it, and nothing else, for all its `gs://` access.

        Args:
          folder: for a file of credentials that are valid for ever, and for nothing.
        """
        # Beam searches for credentials for half a minute before it goes on without.
        credentials = folder / 'emulator_credentials.json'
        credentials.write_text(
            json.dumps(
                {
                    'type': 'authorized_user',
                    'client_id': 'emulator',
                    'client_secret': 'emulator',
                    'refresh_token': 'emulator',
                    'token': 'emulator',
                    'expiry': '2999-01-01T00:00:00Z',
                }
            )
        )
        return {
            'STORAGE_EMULATOR_HOST': self.address,
            'TENSORSTORE_GCS_HTTP_URL': self.address,
            'GOOGLE_APPLICATION_CREDENTIALS': str(credentials),
            'GOOGLE_CLOUD_PROJECT': 'test',
            # TensorStore would exchange the credentials above for a token, over the network.
            'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'emulator',
        }

    def _request(self, path: str, method: str, content: Any = None) -> bytes:
        request = urllib.request.Request(
            self.address + path,
            data=None if content is None else json.dumps(content).encode(),
            headers={'Content-Type': 'application/json'},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            body: bytes = response.read()
            return body


@contextlib.contextmanager
def run_emulator(limit_s: float = 60.0) -> Iterator[Emulator]:
    """An emulator in a process of its own, with its objects in memory, until the block ends.

    Raises:
      RuntimeError: it does not start.
    """
    command = [sys.executable, '-m', 'h01_beam.testing.bucket_server', '--port', '0', '--child']
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _await_address(process, limit_s)
        finally:
            process.terminate()


def _await_address(process: subprocess.Popen[str], limit_s: float) -> Emulator:
    assert process.stdout is not None
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    address = process.stdout.readline().strip()
    timer.cancel()
    if not address:
        raise RuntimeError(f'the bucket emulator did not start: code {process.wait()}')
    return Emulator(address)
