from __future__ import annotations

import dataclasses
import math

import apache_beam as beam
import pytest

from h01_beam.config import from_dict, load
from h01_beam.forecast import page, work
from h01_beam.forecast.dataset import DataSet, Job
from h01_beam.forecast.estimate import CASES, chip_steps, context_of, estimate
from h01_beam.forecast.limits import find_limits
from h01_beam.forecast.rates import UNITS, Range, pattern_of
from h01_beam.forecast.stage import plan_job, stand_in_acquisition
from h01_beam.models import ModelRef
from h01_beam.run import Resources, Run
from h01_beam.segmentation.config import SegmentConfig
from h01_beam.segmentation.stage import build_segment
from h01_beam.volume import Volume, VolumeSpec
from tests.forecast.example import (
    DATASET,
    FLEET,
    MODEL,
    PRICES,
    RATES,
    align_job,
    segment_job,
)


@pytest.fixture(scope='module')
def planned():
    return plan_job(DATASET, segment_job())


@pytest.fixture(scope='module')
def aligned():
    return plan_job(DATASET, align_job())


def stage_of(job, name):
    return next(plan for plan in job.stages if plan.name == name)


def forecast_of(*jobs, fleet=FLEET, rates=RATES, prices=PRICES, dataset=DATASET, only=()):
    return estimate(dataset, fleet, rates, prices, jobs, only)


def test_a_plan_is_that_of_the_job_itself(tmp_path, planned):
    spec = VolumeSpec(
        uri=f'{tmp_path}/em|neuroglancer-precomputed:', voxel_size_nm=(30.0, 8.0, 8.0),
        dtype='uint8', shape=DATASET.shape, chunk=DATASET.chunk,
    )  # fmt: skip
    Volume.create(spec)
    job = segment_job()
    config = load(job.config, (*job.set, f'image={spec.uri}'))
    run = Run(str(tmp_path / 'run'), Resources(1, 2**40), dry_run=True)
    build_segment(beam.Pipeline(), from_dict(SegmentConfig, config), run)
    fields = ('name', 'blocks', 'chains', 'read_bytes', 'write_bytes', 'memory_bytes')
    for mine, real in zip(planned.stages, run.plans, strict=True):
        assert [getattr(mine, f) for f in fields] == [getattr(real, f) for f in fields]
    assert stage_of(planned, 'flood').blocks == 2 * 4 * 4


def test_ten_million_blocks_are_planned_like_ten(planned):
    large = dataclasses.replace(
        DATASET, shape=(6400, 51200, 51200), bytes=6400 * 51200 * 25600, tiles=None
    )
    flood = stage_of(plan_job(large, segment_job()), 'flood')
    small = stage_of(planned, 'flood')
    assert flood.blocks == 200 * 400 * 400 > 10**7
    # With the halo, inner blocks read more than those at faces.
    assert 1 < flood.read_bytes / flood.blocks / (small.read_bytes / small.blocks) < 2
    assert flood.write_bytes / flood.blocks == small.write_bytes / small.blocks


def test_the_acquisition_of_a_plan_has_all_sections_and_the_extent_of_the_box():
    acquisition = stand_in_acquisition(DATASET, '/tiles')
    assert len(acquisition.sections['section']) == 64
    assert len(acquisition.tiles['path']) == 9
    pitch = DATASET.tile_pitch
    assert 9 * math.prod(pitch) == pytest.approx(DATASET.filled * 512 * 512)
    for axis, name in enumerate(('y_nm', 'x_nm')):
        reach = acquisition.tiles[name].max() / DATASET.voxel_size_nm[1] + pitch[axis]
        assert 512 <= reach < 512 + pitch[axis]


def test_every_stage_of_every_job_has_a_unit(planned, aligned):
    for plan in (*planned.stages, *aligned.stages):
        assert pattern_of(plan.name) in UNITS
    with pytest.raises(ValueError, match="stage 'polish': nothing says what its work is counted"):
        pattern_of('polish')


# ---------------------------------------------------------------- what there is to do


def test_work_is_counted_where_there_is_tissue(planned):
    context = context_of(planned, DATASET, FLEET, RATES)
    flood = stage_of(planned, 'flood')
    done = work.measure(flood, context)
    read = next(t.voxels for t in flood.traffic if not t.writes)
    assert done.units.typical == pytest.approx(0.001 * read / 2)  # Half of the box is empty.
    assert done.units.high == pytest.approx(2 * done.units.typical)
    assert done.read_bytes['standard'].typical == pytest.approx(read / 2)
    # A marker each, read and written; block labels, objects and overlaps.
    chunks = next(t.objects for t in flood.traffic if t.writes and t.spec)
    assert done.requests['standard'].class_a == pytest.approx(chunks / 2 + 3 * 32)
    reads = next(t.objects for t in flood.traffic if not t.writes)
    assert done.requests['standard'].class_b == reads + 32 + 2 * 32
    assert done.marker_reads == 0  # Nobody's ledger speaks for the image.


def test_keys_hash_the_markers_of_all_blocks_that_a_block_reads(planned):
    relabel = next(t for t in stage_of(planned, 'relabel').traffic if t.name == 'supervoxels')
    assert relabel.markers == 32
    fill = {t.name: t.markers for t in stage_of(planned, 'fill').traffic if not t.writes}
    assert fill['own'] == 32 and fill['lower_z'] == 16 and fill['upper_x'] == 24


def test_tiles_are_read_by_every_block_that_shows_them(aligned):
    context = context_of(aligned, DATASET, FLEET, RATES)
    assert work.tile_reads(stage_of(aligned, 'check_tiles'), context) == 64 * 9
    assert work.tile_reads(stage_of(aligned, 'measure_offsets'), context) == 64 * 9 * 25 / 16
    rendered = work.measure(stage_of(aligned, 'render_image'), context)
    # Each of the blocks, a whole section of half tissue, shows all of its tiles, and more at faces.
    assert work.tile_reads(stage_of(aligned, 'render_image'), context) > 64 * 9
    assert rendered.read_bytes['standard'].typical > 64 * 9 * 128 * 160 * 0.5


def test_a_network_is_counted_in_gflop():
    card = ModelRef.resolve(str(MODEL)).card
    voxels, inner = 9 * 33 * 33, 15 * 2 * 27 * 16 * 16
    expected = voxels * (inner + 2 * 27 * 2 * 16 + 2 * 16) / 1e9
    assert work.gflop_per_step(card) == pytest.approx(expected)
    # The published network: 46 GFLOP, as the README says.
    published = dataclasses.replace(card, fov_shape=(33, 33, 33), features=32, depth=12)
    assert work.gflop_per_step(published) == pytest.approx(46, rel=0.02)


# ---------------------------------------------------------------- hours and money


def test_a_stage_takes_as_long_as_what_it_waits_for(planned):
    (stage,) = forecast_of(planned, only=['relabel']).stages
    typical = stage.cases['typical']
    busy = stage.work.units.typical / 100 + 32 * 0.01
    assert typical.needs['few blocks'] == pytest.approx(busy / 32)  # 32 blocks, 32 threads.
    written = stage.work.write_bytes['standard'].typical
    assert typical.needs['storage, writing'] == pytest.approx(8 * written / 8e9)
    assert typical.seconds == max(typical.needs.values()) and typical.binds == 'few blocks'
    hours = typical.seconds / 3600
    assert typical.cost['processors'] == pytest.approx(4 * 8 * hours * 0.05)
    assert typical.cost['memory'] == pytest.approx(4 * 32 * hours * 0.005)
    best, _, worst = (stage.cases[case].seconds for case in CASES)
    assert best == pytest.approx(typical.seconds / 2, rel=0.01)
    assert worst == pytest.approx(typical.seconds * 2, rel=0.01)


@pytest.mark.parametrize(
    ('change', 'binds'),
    [
        ({'read_gbps': 1e-6}, 'storage, reading'),
        ({'write_gbps': 1e-6}, 'storage, writing'),
        ({'reads_per_s': 0.001}, 'requests that read'),
        ({'writes_per_s': 0.001}, 'requests that write'),
        ({'workers': 2}, 'processors'),
        ({'quota_vcpus': 16}, 'quota of processors'),
    ],
)
def test_the_limit_that_binds_is_named(planned, change, binds):
    fleet = dataclasses.replace(FLEET, **change)
    (stage,) = forecast_of(planned, fleet=fleet, only=['relabel']).stages
    assert stage.cases['typical'].binds == binds


def test_accelerators_are_no_faster_than_they_are_fed(planned):
    fleet = dataclasses.replace(FLEET, accelerator='chip', quota_accelerators=4)
    steps = chip_steps(planned.card, 'chip', RATES, 'typical')
    assert steps == pytest.approx(100_000 * 0.1 / work.gflop_per_step(planned.card))
    (stage,) = forecast_of(planned, fleet=fleet, only=['flood']).stages
    typical = stage.cases['typical']
    amount = stage.work.units.typical
    assert typical.needs['accelerators'] == pytest.approx(amount / steps / 4)
    assert typical.needs['feeding accelerators'] == pytest.approx((amount / 300 + 0.32) / 4)
    assert typical.binds == 'feeding accelerators'
    assert typical.cost['accelerators'] == pytest.approx(4 * typical.seconds / 3600 * 2.0)
    few = dataclasses.replace(fleet, quota_accelerators=1)
    (stage,) = forecast_of(planned, fleet=few, only=['flood']).stages
    assert stage.cases['typical'].binds == 'quota of feeding accelerators'


def test_one_block_cannot_use_a_fleet(aligned):
    (stage,) = forecast_of(aligned, only=['place_sections']).stages
    typical = stage.cases['typical']
    assert typical.binds == 'few blocks'
    assert typical.vcpu_hours == pytest.approx(8 * typical.seconds / 3600)  # Of one machine.


def test_cold_storage_costs_when_it_is_read(aligned):
    tiles = dataclasses.replace(DATASET.tiles, storage_class='cold')
    dataset = dataclasses.replace(DATASET, tiles=tiles)
    (stage,) = forecast_of(aligned, dataset=dataset, only=['check_tiles']).stages
    stored = 64 * 9 * 128 * 160 * 0.5
    assert stage.cases['typical'].cost['retrieval'] == pytest.approx(stored / 2**30 * 0.1)
    assert stage.work.requests['cold'].class_b == 64 * 9


def test_what_breaks_first_is_at_the_top(planned, aligned):
    fleet = dataclasses.replace(FLEET, patience_days=1e-6)
    limits = find_limits(forecast_of(planned, aligned, fleet=fleet))
    ratios = [limit.ratio for limit in limits]
    assert ratios == sorted(ratios, reverse=True) and limits[0].name.startswith('time: ')
    narrow = dataclasses.replace(FLEET, memory_gib=0.08)
    first = find_limits(forecast_of(planned, fleet=narrow))[0]
    widest = max(planned.stages, key=lambda p: p.memory_bytes)
    assert first.name == 'memory of a worker' and first.where == f'segment/{widest.name}'


# ---------------------------------------------------------------- pages


def test_the_page_tells_every_stage_that_matters(planned, aligned):
    forecast = forecast_of(planned, aligned)
    text = page.markdown(forecast, find_limits(forecast), 'make it', 'small.png')
    assert '# What the reconstruction of small would take' in text
    for stage in forecast.stages:
        if stage.cases['typical'].seconds > page.SMALL * forecast.seconds('typical'):
            assert f'| `{stage.name}` |' in text
    assert 'Prices: list prices of 2026-01' in text and 'check them' in text
    assert text == page.markdown(forecast, find_limits(forecast), 'make it', 'small.png')
    assert page.draw(forecast) == page.draw(forecast)
    assert page.draw(forecast).startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0, '0 s'), (3.14159, '3.1 s'), (90, '1.5 min'), (7200, '2 h'), (86400 * 40, '40 days'),
     (86400 * 365 * 1234.5, '1,230 years')],
)  # fmt: skip
def test_durations(seconds, text):
    assert page.duration(seconds) == text


@pytest.mark.parametrize(
    ('count', 'text'), [(999, '999 B'), (1.4e15, '1.4 PB'), (1e18, '1 EB'), (45.06e18, '45 EB')]
)
def test_sizes(count, text):
    assert page.size(count) == text


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'shape': (0, 10, 10)}, r'dataset.shape is \(0, 10, 10\): the extent is empty'),
        ({'bytes': 64 * 512 * 513}, 'dataset.bytes is .*: must be from 1 to the 16,777,216 voxels'),
        ({'bytes': 0}, 'dataset.bytes is 0'),
        ({'voxel_size_nm': (30.0, 0.0, 8.0)}, 'must be three positive nm'),
    ],
)
def test_data_sets_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DATASET, **change)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'workers': 0}, 'fleet.workers is 0: must be positive'),
        ({'quota_vcpus': 4}, 'fleet.quota_vcpus is 4: must be at least fleet.vcpus, 8'),
        ({'accelerator': 'chip'}, 'fleet.quota_accelerators is 0: must be at least'),
    ],
)
def test_fleets_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FLEET, **change)


def test_what_is_missing_is_named(planned):
    chip = dataclasses.replace(FLEET, accelerator='abacus', quota_accelerators=9)
    with pytest.raises(ValueError, match="fleet.accelerator is 'abacus': must be one of chip"):
        forecast_of(planned, fleet=chip)
    chip = dataclasses.replace(chip, accelerator='chip')
    unpriced = dataclasses.replace(PRICES, accelerator_hour={})
    with pytest.raises(ValueError, match="prices.accelerator_hour has no 'chip'.*add its price"):
        forecast_of(planned, fleet=chip, prices=unpriced)
    frozen = dataclasses.replace(FLEET, results='frozen')
    with pytest.raises(ValueError, match="prices.storage has no class 'frozen': known are standa"):
        forecast_of(planned, fleet=frozen)
    stages = {name: rate for name, rate in RATES.stages.items() if name != 'relabel'}
    slow = dataclasses.replace(RATES, stages=stages)
    with pytest.raises(ValueError, match="rates.stages has no rate for the stage 'relabel'"):
        forecast_of(planned, rates=slow)
    with pytest.raises(ValueError, match="--stage 'polish': no job has it; known are flood, match"):
        forecast_of(planned, only=['polish'])
    unknown = dataclasses.replace(RATES, flood_gflops={})
    with pytest.raises(ValueError, match="rates.flood_gflops has no 'float32'"):
        forecast_of(planned, rates=unknown)
    unknown = dataclasses.replace(RATES, stored_fraction={})
    with pytest.raises(ValueError, match='rates.stored_fraction has no'):
        forecast_of(planned, rates=unknown)


def test_jobs_that_cannot_be_planned():
    with pytest.raises(ValueError, match="jobs names 'dream': must be one of align, segment"):
        plan_job(DATASET, Job(job='dream', config='x'))
    without = dataclasses.replace(DATASET, tiles=None)
    with pytest.raises(ValueError, match='dataset.tiles is null: must be given'):
        plan_job(without, align_job())
    with pytest.raises(ValueError, match=r'was made for \(30.0, 8.0, 8.0\)'):
        plan_job(DATASET, segment_job(downsample=(1, 4, 4)))


def test_rates_and_ranges_are_checked():
    with pytest.raises(ValueError, match='must be low <= typical <= high'):
        Range(low=2.0, typical=1.0, high=3.0)
    rate = RATES.stages['relabel']
    with pytest.raises(ValueError, match="rates.stages has 'polish': no stage is counted under"):
        dataclasses.replace(RATES, stages={'polish': rate})
    with pytest.raises(ValueError, match="rates.stages.match.unit is 'written_voxels': must be"):
        dataclasses.replace(RATES, stages={'match': rate})
    with pytest.raises(ValueError, match="prices.as_of is 'now'"):
        dataclasses.replace(PRICES, as_of='now')
    with pytest.raises(ValueError, match='prices.vcpu_hour is -1'):
        dataclasses.replace(PRICES, vcpu_hour=-1.0)


def test_settings_come_from_mappings():
    text = {'name': 'a', 'shape': [1, 2, 3], 'voxel_size_nm': [30, 4, 4], 'bytes': 6}
    assert from_dict(DataSet, text, 'dataset.').filled == 1.0
