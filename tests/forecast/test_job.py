"""What a job would cost on the workers that it asks for."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import pytest

from h01_beam.acquisition.importers import ImportConfig, import_acquisition
from h01_beam.alignment.job import AlignJob
from h01_beam.alignment.stage import build_align_job
from h01_beam.cloud.fleet import Fleet as Machines
from h01_beam.config import from_dict, load
from h01_beam.forecast import page
from h01_beam.forecast.estimate import CASES, estimate
from h01_beam.forecast.job import foresee
from h01_beam.forecast.stage import PlannedJob
from h01_beam.hardware import Accelerator
from h01_beam.models import ModelRef
from h01_beam.run import Resources, Run
from h01_beam.segmentation.config import SegmentConfig
from h01_beam.segmentation.stage import build_segment
from h01_beam.volume import Volume, VolumeSpec
from tests.alignment.acquisition import PIXEL_NM, write_acquisition
from tests.forecast.example import DATASET, FLEET, MODEL, PRICES, RATES, segment_job

CPU = Machines(3, 'n2-highmem-8', 60, True, None)
CHIP = Accelerator.parse('a', 'type:tpu-v5-lite-podslice;topology:2x2')
TPU = Machines(3, 'ct5lp-hightpu-4t', 60, True, CHIP)
ON_TPU = {
    'rates': dataclasses.replace(RATES, accelerators={'tpu_v5e': RATES.accelerators['chip']}),
    'prices': dataclasses.replace(PRICES, accelerator_hour={'tpu_v5e': 2.0}),
}


@pytest.fixture(scope='module')
def segment(tmp_path_factory):
    folder = tmp_path_factory.mktemp('segment')
    spec = VolumeSpec(
        uri=f'{folder}/em|neuroglancer-precomputed:', voxel_size_nm=(30.0, 8.0, 8.0),
        dtype='uint8', shape=DATASET.shape, chunk=DATASET.chunk,
    )  # fmt: skip
    Volume.create(spec)
    job = segment_job()
    config = from_dict(SegmentConfig, load(job.config, (*job.set, f'image={spec.uri}')))
    run = Run(str(folder / 'run'), Resources(1, 2**40), dry_run=True)
    build_segment(beam.Pipeline(), config, run)
    return config, run


def foreseen(segment, machines=CPU, pool=False, rates=RATES, prices=PRICES):
    return foresee('segment', *segment, machines, pool, FLEET, rates, prices)


def test_a_job_costs_what_a_plan_of_it_says(segment):
    config, run = segment
    found = foreseen(segment)
    dataset = dataclasses.replace(
        DATASET, name='segment', bytes=DATASET.voxels, tiles=None, voxel_size_nm=(30.0, 8.0, 8.0)
    )
    fleet = dataclasses.replace(FLEET, workers=3, vcpus=8, memory_gib=64.0, quota_vcpus=24)
    job = PlannedJob('segment', config, tuple(run.plans), ModelRef.resolve(str(MODEL)).card)
    expected = estimate(dataset, fleet, RATES, PRICES, [job])
    assert found.unknown == ()
    for case in CASES:
        assert found.forecast.dollars(case) == pytest.approx(expected.dollars(case))
    text = page.describe_cost(found.forecast, found.unknown)
    assert [line.split()[0] for line in text.splitlines()][1:4] == ['flood', 'match', 'components']
    assert 'Prices of 2026-01' in text


def test_in_a_pool_all_stages_pay_for_chips(segment):
    by_stage = foreseen(segment, TPU, **ON_TPU).forecast
    pool = foreseen(segment, TPU, pool=True, **ON_TPU).forecast
    for one, other in zip(by_stage.stages, pool.stages, strict=True):
        chips = [s.cases['typical'].cost['accelerators'] for s in (one, other)]
        assert (chips[0] > 0) == (one.plan.name == 'flood') and chips[1] > 0
    assert pool.dollars('typical') > by_stage.dollars('typical')


def test_stages_that_nobody_measured_are_named(segment):
    stages = {name: rate for name, rate in RATES.stages.items() if name != 'relabel'}
    found = foreseen(segment, rates=dataclasses.replace(RATES, stages=stages))
    assert found.unknown == ('relabel',)
    text = page.describe_cost(found.forecast, found.unknown)
    assert 'Not in it, as nobody measured them: relabel.' in text


def test_tiles_are_counted(tmp_path):
    write_acquisition(tmp_path, sections=2, missing=(), broken=())
    tiles = ImportConfig(
        source=f'{tmp_path}/tiles.parquet', kind='manifest', pixel_nm=PIXEL_NM,
        sections=f'{tmp_path}/sections.csv',
    )  # fmt: skip
    job = AlignJob(tiles=tiles)
    run = Run(str(tmp_path / 'run'), Resources(1, 2**40), dry_run=True)
    build_align_job(beam.Pipeline(), import_acquisition(tiles), job, run)
    found = foresee('align', job, run, CPU, False, FLEET, RATES, PRICES)
    assert found.forecast.dataset.tiles.count == 18
    stage = next(s for s in found.forecast.stages if s.plan.name == 'check_tiles')
    assert stage.work.units.typical == 18 * 120 * 150


def test_machines_and_chips_that_nobody_knows(segment):
    with pytest.raises(ValueError, match="machine_type is 'n2-7': its cores and memory are not"):
        foreseen(segment, dataclasses.replace(CPU, machine_type='n2-7'))
    odd = Accelerator.parse('a', 'type:nvidia-abacus;count:1')
    with pytest.raises(ValueError, match="accelerator 'nvidia-abacus': must be one of tpu-v5-lite"):
        foreseen(segment, dataclasses.replace(CPU, accelerator=odd))
