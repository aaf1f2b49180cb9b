"""A command that is given again and again until it is done, while its bucket and workers fail.

Workers are killed (`kill -9`) and stopped for a while, as stragglers are; and launchers are killed
beside a stopped worker, which then goes on with its block while its successor does the same one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence

from h01_beam.testing.bucket import CONTROL, Emulator
from h01_beam.testing.faults import FaultPlan

KILLED, STOPPED, ORPHANED = 'worker_killed', 'worker_stopped', 'launcher_killed'
STOPPED_S = 3.0
POLL_S = 0.2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How it went.

    Attributes:
      codes: exit codes of the attempts, in order; the last is 0.
      faults: that were made, by kind.
      output: of the attempts, standard output and error together.
    """

    codes: tuple[int, ...]
    faults: Mapping[str, int]
    output: str


def run_until_done(
    command: Sequence[str],
    emulator: Emulator,
    plan: FaultPlan,
    acts: Sequence[str],
    *,
    most_attempts: int = 60,
    limit_s: float = 1500.0,
) -> Outcome:
    """Gives a command until it ends with 0.

    Args:
      command: what a user would give, with two or more local workers.
      emulator: of the bucket that the command uses.
      plan: faults of the bucket.
      acts: what happens to the processes, in this order: `KILLED`, `STOPPED`, `ORPHANED`. When is
        drawn from the plan's seed: after so many faults of the bucket.
      most_attempts: how often the command is given at most.
      limit_s: how long all of it may take.

    Raises:
      RuntimeError: it is not done after so many attempts, or so much time.
    """
    draw = random.Random(plan.seed)
    due = sorted(draw.randint(1, max(1, plan.count * 3 // 4)) for _ in acts)
    pending = list(zip(due, acts, strict=True))
    emulator.inject(plan)
    environment = {**os.environ, 'H01_BEAM_FAULTS_URL': emulator.address + CONTROL}
    deadline, output = time.monotonic() + limit_s, ''
    codes: list[int] = []
    while len(codes) < most_attempts and time.monotonic() < deadline:
        # A file: workers that outlive the launcher would hold a pipe open.
        with tempfile.TemporaryFile('w+') as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                stopped = _disturb(process, emulator, pending, draw, deadline)
                process.wait(timeout=max(1.0, deadline - time.monotonic()))
            finally:
                process.kill()
            log.seek(0)
            output += log.read()
        codes.append(process.returncode)
        for pid in stopped:
            # It belongs to nobody now, and has some time before it notices.
            _signal(pid, signal.SIGCONT)
        if process.returncode == 0:
            return Outcome(tuple(codes), emulator.faults(), output)
    raise RuntimeError(
        f'not done after {len(codes)} attempts, with codes {codes}:\n{output[-4000:]}'
    )


def _disturb(
    process: subprocess.Popen[bytes],
    emulator: Emulator,
    pending: list[tuple[int, str]],
    draw: random.Random,
    deadline: float,
) -> list[int]:
    """Acts on a running command until it ends; returns workers that it leaves stopped."""
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
        if not pending or sum(emulator.faults().values()) < pending[0][0]:
            if not pending:
                return []
            continue
        workers = _workers_of(process.pid)
        if not workers:
            continue
        _, act = pending.pop(0)
        victim = draw.choice(workers)
        emulator.note(act)
        if act == KILLED:
            _signal(victim, signal.SIGKILL)
            return []
        _signal(victim, signal.SIGSTOP)
        if act == ORPHANED:
            process.kill()
            return [victim]
        time.sleep(STOPPED_S)
        _signal(victim, signal.SIGCONT)
    return []


def _workers_of(session: int) -> list[int]:
    """Worker processes that a launcher has started, by number."""
    found = []
    for name in os.listdir('/proc'):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            with open(f'/proc/{name}/cmdline', 'rb') as file:
                words = file.read().split(b'\0')
            if b'python' in words[0] and any(b'sdk_worker_main' in word for word in words):
                if os.getsid(int(name)) == session:
                    found.append(int(name))
    return sorted(found)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
