"""Fixtures that all tests share: real data, a bucket on loopback, repeatable random examples."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Set before any test module imports TensorFlow, and inherited by child processes.
os.environ.setdefault('KERAS_BACKEND', 'tensorflow')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('GRPC_VERBOSITY', 'ERROR')
# Without it google-auth looks for a metadata server, for seconds, on every machine.
os.environ.setdefault('NO_GCE_CHECK', 'true')

# CI tries the same examples every time. No deadline: the machine may be shared.
hypothesis.settings.register_profile(
    'h01_beam', deadline=None, derandomize='CI' in os.environ, print_blob=True
)
hypothesis.settings.load_profile('h01_beam')


@pytest.fixture(scope='session')
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """The folder of real microscopy data that is no part of the repository; skips without it."""
    default = REPOSITORY.parent / 'shared' / 'data'
    folder = Path(os.environ.get('H01_BEAM_SHARED_DATA', default))
    if not folder.is_dir():
        pytest.skip(f'no real data at {folder}: set H01_BEAM_SHARED_DATA to the folder that has it')
    return folder


@pytest.fixture(scope='session')
def bucket_emulator() -> Iterator[str]:
    """The address of a bucket emulator, one process with its objects in memory."""
    address = f'http://127.0.0.1:{_free_port()}'
    host, port = address.removeprefix('http://').split(':')
    command = [sys.executable, '-m', 'gcp_storage_emulator', 'start', '--host', host]
    with subprocess.Popen(
        [*command, '--port', port, '--in-memory', '--quiet'],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            _wait_until_up(address, process)
            yield address
        finally:
            process.terminate()


@pytest.fixture
def gcs_bucket(
    bucket_emulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A new, empty bucket `gs://...` on loopback, for this process and those that it starts.

    TensorStore, google-cloud-storage and Beam's file systems all reach it. The emulator lives
    for the whole session, as clients that are cached in a process keep its address.
    """
    for name, value in _emulator_environment(bucket_emulator, tmp_path).items():
        monkeypatch.setenv(name, value)
    name = f'test-{uuid.uuid4().hex[:12]}'
    request = urllib.request.Request(
        f'{bucket_emulator}/storage/v1/b?project=test',
        data=json.dumps({'name': name}).encode(),
        headers={'Content-Type': 'application/json'},
    )
    with urllib.request.urlopen(request, timeout=10):
        pass
    yield f'gs://{name}'


def _emulator_environment(address: str, folder: Path) -> dict[str, str]:
    """What a process needs to use the emulator, and nothing else, for all its `gs://` access."""
    # Beam searches for credentials for half a minute before it goes on without. These are valid
    # for it, for ever, and for nobody else; the emulator ignores them.
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
        'STORAGE_EMULATOR_HOST': address,
        'TENSORSTORE_GCS_HTTP_URL': address,
        'GOOGLE_APPLICATION_CREDENTIALS': str(credentials),
        'GOOGLE_CLOUD_PROJECT': 'test',
        # TensorStore would exchange the credentials above for a token, over the network.
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'emulator',
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(address: str, process: subprocess.Popen[bytes], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f'the bucket emulator ended with code {process.returncode}')
        with contextlib.suppress(urllib.error.URLError, TimeoutError):
            with urllib.request.urlopen(address, timeout=1):
                return
        time.sleep(0.05)
    raise TimeoutError(f'the bucket emulator did not answer at {address} within {limit_s} s')


if __name__ == '__main__':
    # Bazel's py_test: the arguments are test files.
    sys.exit(pytest.main(sys.argv[1:]))
