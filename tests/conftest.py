"""Fixtures that all tests share: real data, a bucket on loopback, repeatable random examples."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from h01_beam.testing.bucket import Emulator

REPOSITORY = Path(__file__).resolve().parents[1]

# Set before any test module imports TensorFlow, and inherited by child processes.
os.environ.setdefault('KERAS_BACKEND', 'tensorflow')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('GRPC_VERBOSITY', 'ERROR')
# Without it google-auth looks for a metadata server, for seconds, on every machine.
os.environ.setdefault('NO_GCE_CHECK', 'true')
# A bucket on loopback answers at once: what does not is a fault that a test made.
os.environ.setdefault('H01_BEAM_RETRY_DELAY_S', '0.05')
os.environ.setdefault('H01_BEAM_REQUEST_TIMEOUT_S', '2')

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
def bucket_emulator() -> Iterator[Emulator]:
    """A bucket emulator, one process with its objects in memory."""
    from h01_beam.testing.bucket import run_emulator  # After the environment is set, see above.

    with run_emulator() as emulator:
        yield emulator


@pytest.fixture
def gcs_bucket(
    bucket_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A new, empty bucket `gs://...` on loopback, for this process and those that it starts.

    TensorStore, google-cloud-storage and Beam's file systems all reach it. The emulator lives
    for the whole session, as clients that are cached in a process keep its address. Faults that a
    test injects end with it.
    """
    from h01_beam.testing.faults import FaultPlan

    for name, value in bucket_emulator.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    yield bucket_emulator.make_bucket(f'test-{uuid.uuid4().hex[:12]}')
    bucket_emulator.inject(FaultPlan())


if __name__ == '__main__':
    # Bazel's py_test: the arguments are test files.
    sys.exit(pytest.main(sys.argv[1:]))
