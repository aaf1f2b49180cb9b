r"""Runs one command on an engine of its own, which starts before it and ends with it.

    python -m h01_beam.testing.engines flink python -m pipelines.segment --config ... --run_dir run
    python -m h01_beam.testing.engines prism python -m pipelines.segment --config ... --run_dir run

Exit code: that of the command, or 2 when the engine is not there or does not start.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from h01_beam.testing.engines import FlinkCluster, Prism


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument('engine', choices=['flink', 'prism'])
    flags.add_argument('--task_managers', type=int, default=2, help='of Flink (default 2)')
    flags.add_argument('--logs', help='folder that keeps the logs of the engine')
    flags.add_argument('command', nargs=argparse.REMAINDER)
    args = flags.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix='engine_') as scratch:
        folder = args.logs or scratch
        try:
            engine: FlinkCluster | Prism = (
                Prism(folder)
                if args.engine == 'prism'
                else FlinkCluster(folder, args.task_managers, parallelism=args.task_managers)
            )
            with engine:
                return subprocess.run([*args.command, *engine.beam_flags()], check=False).returncode
        except RuntimeError as error:
            sys.stderr.write(f'error: {error}\n')
            return 2


if __name__ == '__main__':
    sys.exit(main())
