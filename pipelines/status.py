"""How far a run is: blocks done, left and given up, speed, time left; read from its ledger.

    python -m pipelines.status --run_dir run
    python -m pipelines.status --run_dir gs://b/run --watch
For any runner, from any machine that reaches the run directory, while the run goes on. A listing of
ten million blocks in a bucket takes ten thousand requests: --stage NAME looks at one stage.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from absl import app

from h01_beam import generations, progress, status
from pipelines import launch


def main(args: argparse.Namespace) -> int:
    try:
        if args.beam:
            raise ValueError(f'unknown flag {args.beam[0]!r}: see --help')
        # A generation that is being made; else the present one.
        run_dir = generations.unfinished(args.run_dir) or generations.current(args.run_dir)
        if args.watch:
            watch(run_dir, args.stage)
            return 0
        found = status.read_status(run_dir, only=args.stage)
        print(json.dumps(status.as_json(found), indent=1) if args.json else status.describe(found))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return launch.BAD_INPUT
    except KeyboardInterrupt:
        pass
    return 0


def watch(run_dir: str, only: list[str]) -> None:
    """Shows a bar for every stage until all are done, or until Ctrl-C."""
    with progress.LedgerProgress(status.plans_of(run_dir, only), enabled=True) as bars:
        while not bars.finished:
            time.sleep(progress.LOCAL_INTERVAL_S)


def flags() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument('--run_dir', required=True, help='local folder or gs:// URL')
    result.add_argument(
        '--stage', action='append', default=[], metavar='NAME', help='only this; may be repeated'
    )
    result.add_argument('--watch', action='store_true', help='bars, until all is done')
    result.add_argument('--json', action='store_true', help='for other programs')
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
