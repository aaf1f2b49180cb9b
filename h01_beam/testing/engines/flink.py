"""A Flink cluster on this machine, and Beam's job server before it.

    pipeline -> job server -> JobManager -> TaskManager 1 -> worker process
                                         -> TaskManager 2 -> worker process

All Java processes run from the jars that `deploy/engines/fetch flink` copies. Each has two slots,
so that the survivor has room for the whole job when the other is killed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import urllib.error
import urllib.request
from typing import Any, Self

from h01_beam.testing.engines.prism import portable_flags
from h01_beam.testing.engines.processes import (
    MissingEngineError,
    Processes,
    engines_folder,
    free_port,
    listens,
    write_boot,
)

JOB_MANAGER = 'org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint'
TASK_MANAGER = 'org.apache.flink.runtime.taskexecutor.TaskManagerRunner'
JOB_SERVER = 'org.apache.beam.runners.flink.FlinkJobServerDriver'
# What Flink's own scripts open to it from Java 17 on.
OPENED = (
    'lang', 'lang.reflect', 'io', 'net', 'nio', 'text', 'time', 'util', 'util.concurrent',
    'util.concurrent.atomic', 'util.concurrent.locks',
)  # fmt: skip
SLOTS = 2


class FlinkCluster(Processes):
    """A job server, a JobManager and TaskManagers on loopback.

    Args:
      folder: for logs, configuration and spilled data.
      task_managers: how many.
      parallelism: of jobs.
      attempts: how often a job is restarted after a failure.

    Raises:
      MissingEngineError: there are no jars, or no Java.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        task_managers: int = 2,
        parallelism: int = 2,
        attempts: int = 3,
    ):
        jars, java = engines_folder() / 'flink', shutil.which('java')
        if not (jars / 'complete').exists() or java is None:
            raise MissingEngineError(
                f'no Flink at {jars} or no Java: install Java 17, run deploy/engines/fetch flink'
            )
        super().__init__(folder)
        self._jars, self._java = f'{jars}/*', java
        self._task_managers = task_managers
        self._ports = {name: free_port() for name in ('rpc', 'rest', 'jobs')}
        self._configuration = _configuration(self._ports, parallelism, attempts, str(self.folder))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def beam_flags(self) -> list[str]:
        """Flags that send a pipeline here."""
        return portable_flags(self._ports['jobs'], str(write_boot(self.folder)))

    def task_managers(self) -> list[str]:
        """Names of the TaskManagers' processes."""
        return [f'task_manager_{i + 1}' for i in range(self._task_managers)]

    def overview(self) -> dict[str, Any]:
        """What the JobManager says: `taskmanagers`, `jobs-running`, ...; empty while it starts."""
        with contextlib.suppress(urllib.error.URLError, TimeoutError, ConnectionError):
            url = f'http://127.0.0.1:{self._ports["rest"]}/overview'
            with urllib.request.urlopen(url, timeout=10) as response:
                return dict(json.load(response))
        return {}

    def _start(self) -> None:
        conf = self.folder / 'conf'
        conf.mkdir(exist_ok=True)
        lines = [f'{key}: {value}\n' for key, value in self._configuration.items()]
        (conf / 'flink-conf.yaml').write_text(''.join(lines))
        # One after the other: some of Flink's time limits cannot be set, and a busy machine that
        # starts all at once exceeds them.
        self._start_java('job_manager', JOB_MANAGER, '--configDir', str(conf))
        self.wait_for('the JobManager', lambda: bool(self.overview()))
        for i, name in enumerate(self.task_managers(), 1):
            self._start_java(name, TASK_MANAGER, '--configDir', str(conf))
            self.wait_for(name, functools.partial(self._has_task_managers, i))
        self._start_java(
            'job_server', JOB_SERVER, '--job-host=127.0.0.1', f'--job-port={self._ports["jobs"]}',
            '--artifact-port=0', '--expansion-port=0',
            f'--flink-master=127.0.0.1:{self._ports["rest"]}', f'--flink-conf-dir={conf}',
            f'--artifacts-dir={self.folder / "artifacts"}',
        )  # fmt: skip
        self.wait_for('the job server', lambda: listens(self._ports['jobs']))

    def _has_task_managers(self, count: int) -> bool:
        return bool(self.overview().get('taskmanagers') == count)

    def _start_java(self, name: str, main_class: str, *arguments: str) -> None:
        opened = [f'--add-opens=java.base/java.{package}=ALL-UNNAMED' for package in OPENED]
        command = [
            # The client's compiler and collector: small, and these processes only pass data on.
            self._java, '-Xmx384m', '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1',
            # The graph of a job is read stage within stage: a hundred stages need a deep stack.
            '-Xss8m', *opened, '-cp', self._jars, main_class, *arguments,
        ]  # fmt: skip
        self.start(name, command, {'FLINK_CONF_DIR': str(self.folder / 'conf')})


def _configuration(
    ports: dict[str, int], parallelism: int, attempts: int, folder: str
) -> dict[str, object]:
    loopback = '127.0.0.1'
    return {
        'jobmanager.rpc.address': loopback,
        'jobmanager.rpc.port': ports['rpc'],
        'jobmanager.bind-host': loopback,
        'taskmanager.host': loopback,
        'taskmanager.bind-host': loopback,
        'rest.address': loopback,
        'rest.bind-address': loopback,
        'rest.port': ports['rest'],
        'parallelism.default': parallelism,
        'taskmanager.numberOfTaskSlots': SLOTS,
        # Else one TaskManager may get the whole job.
        'cluster.evenly-spread-out-slots': 'true',
        # A TaskManager that Flink's scripts do not start has to be told all of its memory.
        'taskmanager.cpu.cores': '1.0',
        'taskmanager.memory.task.heap.size': '192m',
        'taskmanager.memory.task.off-heap.size': '64m',
        'taskmanager.memory.network.min': '192m',
        'taskmanager.memory.network.max': '192m',
        # What passes between stages is small, but there are many shuffles at once.
        'taskmanager.network.sort-shuffle.min-buffers': 16,
        'taskmanager.memory.managed.size': '128m',
        'taskmanager.memory.framework.heap.size': '64m',
        'taskmanager.memory.framework.off-heap.size': '64m',
        'taskmanager.memory.jvm-metaspace.size': '128m',
        'taskmanager.memory.jvm-overhead.min': '64m',
        'taskmanager.memory.jvm-overhead.max': '64m',
        # A machine with other work to do must not pass for a dead one.
        'heartbeat.interval': 5000,
        'heartbeat.timeout': 120000,
        'pekko.startup-timeout': '120 s',
        'pekko.ask.timeout': '120 s',
        'web.timeout': 120000,
        'slot.request.timeout': 600000,
        'restart-strategy.type': 'fixed-delay',
        'restart-strategy.fixed-delay.attempts': attempts,
        'restart-strategy.fixed-delay.delay': '1 s',
        # Beam's jars travel with a job, though they are here already.
        'classloader.resolve-order': 'parent-first',
        'io.tmp.dirs': f'{folder}/tmp',
    }
