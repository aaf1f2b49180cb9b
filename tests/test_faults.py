"""A run through many faults of its bucket: nothing is lost, nothing double, all are counted.

The processes of such a run die and straggle in tests/pipelines/test_bucket.py.
"""

from __future__ import annotations

import json

import pytest

from h01_beam import storage
from h01_beam.blockwise import MapBlocks
from h01_beam.finish import FinishRun
from h01_beam.geometry import BlockGrid, CoreBox
from h01_beam.plan import BlockResult
from h01_beam.testing.bucket import CONTROL
from h01_beam.testing.faults import KINDS, FaultPlan
from h01_beam.volume import Volume
from tests.arrays import create, position_code, run_pipeline
from tests.blocks import BLOCK, ROWS, filter_twice, mean_with_rows, target

BLOCKS, MOST_ATTEMPTS = 27, 60


def _build(base):
    """Image -> filtered, rows -> filtered again; rows -> rows."""
    source = Volume.open(f'{base}/em').spec
    outputs = [target(f'{base}/run/volumes/v0', source),
               target(f'{base}/run/volumes/v1', source, 'zarr3')]  # fmt: skip

    def build(root, run):
        run.write_manifest('faults', {}, {})
        first = filter_twice(root, run, source, mean_with_rows, outputs)
        root | MapBlocks(
            _copy_rows, stage='copy', grid=BlockGrid(source.bounds, BLOCK), run=run,
            table_reads={'rows': CoreBox(margin=(1, 1, 1))}, table_writes={'copied': ROWS},
            after=[first],
        )  # fmt: skip
        root | FinishRun(run)

    return build


def _copy_rows(rows):
    return BlockResult(rows={'copied': rows})


def _write_image(base):
    volume = create(f'{base}/em', write=False)
    volume.write(volume.bounds, position_code(volume.bounds, 'uint8'))


def _results(base):
    """All files but those that tell when and where, and the digests of the blocks."""
    found = {}
    for path in storage.list_files(f'{base}/run'):
        name = path.removeprefix(f'{base}/run/')
        if '/blocks/' in name:
            marker = json.loads(storage.read_bytes(path))
            found[name] = marker['digest'], marker['rows']
        elif name.startswith(('volumes/', 'tables/')) and 'provenance' not in name:
            found[name] = storage.read_bytes(path)
    return found


@pytest.mark.parametrize(
    ('count', 'rate'),
    [(20, 0.05), pytest.param(200, 0.4, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
def test_nothing_is_lost_and_nothing_double(
    tmp_path, gcs_bucket, bucket_emulator, monkeypatch, count, rate
):
    _write_image(tmp_path)
    run_pipeline(tmp_path / 'run', _build(tmp_path), strict=False)
    expected = _results(tmp_path)
    _write_image(gcs_bucket)
    monkeypatch.setenv('H01_BEAM_FAULTS_URL', bucket_emulator.address + CONTROL)
    bucket_emulator.inject(FaultPlan(seed=count, count=count, rate=rate, hung_s=60, slow_s=0.2))
    errors = []
    for _ in range(MOST_ATTEMPTS):
        try:
            run_pipeline(f'{gcs_bucket}/run', _build(gcs_bucket))
            break
        except Exception as error:  # What is given up: the same command goes on.
            errors.append(str(error))
    else:
        pytest.fail(f'not done after {MOST_ATTEMPTS} attempts: {errors[-1]}')
    faults = bucket_emulator.faults()
    report = json.loads(storage.read_bytes(f'{gcs_bucket}/run/report.json'))
    print(f'{count} faults in {1 + len(errors)} attempts: {faults}')
    assert sum(faults.values()) == count and report['faults'] == faults
    assert count < 200 or set(faults) == set(KINDS)
    for stage in report['stages'].values():
        assert stage['blocks'] == BLOCKS == stage['blocks_run'] + stage['blocks_reused']
    assert 'Faults made on purpose' in storage.read_bytes(f'{gcs_bucket}/run/report.html').decode()
    assert _results(gcs_bucket) == expected and len(expected) > 5 * BLOCKS
