"""A worker process that dies ends the run in seconds; the same command finishes it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from h01_beam.ledger import Ledger
from tests.arrays import read_all
from tests.blocks import Mean, noisy_image, summary_of

COMMAND = """
import argparse, sys
from h01_beam.blockwise import MapBlocks
from h01_beam.finish import FinishRun
from h01_beam.volume import Volume
from pipelines import launch
from tests.blocks import KillsItsWorker, grid_of, target

folder = sys.argv[1]
source = Volume.open(f'{folder}/em').spec

def build(root, run):
    run.write_manifest('filter', {}, {})
    root | MapBlocks(
        KillsItsWorker(f'{folder}/poison'), stage='filter', grid=grid_of(source), run=run,
        reads={'image': source}, writes={'filtered': target(f'{folder}/out', source)},
    )
    root | FinishRun(run)

args = launch.parser('', config=False, run_dir=False).parse_args([])
args.beam = ['--direct_num_workers=2']
sys.exit(launch.execute(args, f'{folder}/run', build))
"""


@pytest.mark.slow
def test_a_worker_that_dies(tmp_path, repository):
    source = noisy_image(tmp_path)
    (tmp_path / 'poison').write_text('')

    def give():
        command = [sys.executable, '-c', COMMAND, str(tmp_path)]
        return subprocess.run(
            command, cwd=repository, capture_output=True, text=True, timeout=250, check=False
        )

    died = give()
    assert died.returncode == 1 and 'a worker process died' in died.stderr, died.stderr
    assert 'give the same command to go on' in died.stderr
    assert not (tmp_path / 'poison').exists()
    finished = len(list(Ledger(f'{tmp_path}/run/ledger/filter').markers_written()))
    assert finished < 27
    assert give().returncode == 0

    class Run:
        ledger = staticmethod(lambda stage: Ledger(f'{tmp_path}/run/ledger/{stage}'))

    assert summary_of(Run, 'filter')['blocks_run'] <= 27 - finished
    expected = Mean()(read_all(source.uri))
    np.testing.assert_array_equal(read_all(f'{tmp_path}/out'), expected)
