from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import pytest

from h01_beam import worker

WORKER = """
import time

import pytest
from h01_beam import worker
worker.exit_with_launcher()
print('started', flush=True)
time.sleep(60)
"""
LAUNCHER = f"""
import subprocess, sys
from h01_beam import worker
worker.prepare_launch()
child = subprocess.Popen([sys.executable, '-c', {WORKER!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_workers_end_with_their_launcher(repository):
    launcher = subprocess.Popen(
        [sys.executable, '-c', LAUNCHER], cwd=repository, stdout=subprocess.PIPE, text=True
    )
    pid = int(launcher.stdout.readline())
    os.kill(pid, 0)
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + 30
    while worker._birth(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert worker._birth(pid) is None


def test_workers_have_one_thread_for_arrays(repository):
    count = 'import cv2; from h01_beam import worker; print(cv2.getNumThreads())'
    launcher = f"""
import subprocess, sys
from h01_beam import worker
worker.prepare_launch()
subprocess.run([sys.executable, '-c', {count!r}], check=True)
"""
    environment = {k: v for k, v in os.environ.items() if k not in worker.ONE_THREAD}
    told = subprocess.run(
        [sys.executable, '-c', launcher], cwd=repository, env=environment, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert told.stdout.split() == ['1']


def test_a_process_is_told_from_a_later_one():
    assert worker._birth(os.getpid()) == worker._birth(os.getpid()) is not None
    assert worker._birth(2**22 + 1) is None


def test_failed_blocks_are_left_to_the_launcher():
    stream = io.StringIO()
    quiet = worker._WithoutFailedBlocks(stream)
    print('before', file=quiet)
    print('Traceback\n  ...\nh01_beam.work.BlockError: stage a', file=quiet)
    print(file=quiet)
    print('Traceback\n  ...\nKeyError: 3', file=quiet)
    quiet.flush()
    assert stream.getvalue() == 'before\n\nTraceback\n  ...\nKeyError: 3\n'


def test_worker_processes_get_all_of_their_input(monkeypatch):
    """The runner's flush timer drops data: it must stay off, and be there to be turned off."""
    from apache_beam.runners.portability.fn_api_runner import worker_handlers

    monkeypatch.setattr(worker_handlers, 'DATA_BUFFER_TIME_LIMIT_MS', 1000)
    monkeypatch.setenv(worker.LAUNCHER, '0')
    worker.prepare_launch()
    assert worker_handlers.DATA_BUFFER_TIME_LIMIT_MS == 0
    monkeypatch.delattr(worker_handlers, 'DATA_BUFFER_TIME_LIMIT_MS')
    with pytest.raises(RuntimeError, match='constraints.txt'):
        worker.prepare_launch()


def test_peak_memory_is_that_of_this_process():
    before = worker.peak_memory_bytes()
    block = bytearray(before + 2**26)
    block[:: 2**12] = b'x' * len(block[:: 2**12])
    assert worker.peak_memory_bytes() >= before + 2**26


def test_a_worker_that_dies_is_told_once(monkeypatch):
    from apache_beam.runners.portability import local_job_service

    def dies(self):
        raise RuntimeError('Worker subprocess exited with return code 137')

    monkeypatch.setattr(local_job_service.SubprocessSdkWorker, 'run', dies)
    monkeypatch.setattr(worker, 'GRACE_S', 0.0)
    monkeypatch.setenv(worker.LAUNCHER, '')
    told = []
    for _ in range(2):  # A second launch in this process takes the place of the first.
        worker.prepare_launch(told.append)
    local_job_service.SubprocessSdkWorker.run(None)
    assert told == ['Worker subprocess exited with return code 137']
