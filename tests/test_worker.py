from __future__ import annotations

import io
import os
import subprocess
import sys
import time

from h01_beam import worker

WORKER = """
import time
from h01_beam import worker
worker.exit_with_launcher()
print('started', flush=True)
time.sleep(60)
"""
LAUNCHER = f"""
import subprocess, sys
from h01_beam import worker
worker.announce_launcher()
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


def test_a_process_is_told_from_a_later_one():
    assert worker._birth(os.getpid()) == worker._birth(os.getpid()) is not None
    assert worker._birth(2**22 + 1) is None


def test_failed_blocks_are_left_to_the_launcher():
    stream = io.StringIO()
    quiet = worker._WithoutFailedBlocks(stream)
    print('before', file=quiet)
    print('Traceback\n  ...\nh01_beam.blockwise.BlockError: stage a', file=quiet)
    print(file=quiet)
    print('Traceback\n  ...\nKeyError: 3', file=quiet)
    quiet.flush()
    assert stream.getvalue() == 'before\n\nTraceback\n  ...\nKeyError: 3\n'
