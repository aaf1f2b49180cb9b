from __future__ import annotations

import dataclasses
import re

import apache_beam as beam
import pytest

from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid
from h01_beam.hardware import TPU_MACHINES, Accelerator, Hardware, StageNeeds
from h01_beam.options import Options
from h01_beam.run import Resources, Run
from h01_beam.volume import Volume
from tests.arrays import create, run_pipeline, tree_bytes

TPU = 'type:tpu-v5-lite-podslice;topology:2x2'
GPU = 'type:nvidia-l4;count:2;install-nvidia-driver:5xx'


def hardware(stages=None, **workers):
    return Hardware.parse({'workers': workers, 'stages': stages or {}})


def test_accelerators():
    tpu, gpu = Accelerator.parse('a', TPU), Accelerator.parse('a', GPU)
    assert (tpu.chips, tpu.topology, tpu.machine_type) == (4, '2x2', 'ct5lp-hightpu-4t')
    assert (gpu.chips, gpu.topology, gpu.machine_type) == (2, None, None)
    for kind, topology in TPU_MACHINES:
        assert Accelerator.parse('a', f'type:{kind};topology:{topology}').chips in (1, 4, 8)


@pytest.mark.parametrize(
    'text',
    ['nvidia-l4', 'type:nvidia-l4', 'type:nvidia-l4;count:0', 'count:1', 'type:x;topology:2x'],
)
def test_malformed_accelerators_are_refused(text):
    with pytest.raises(ValueError, match='must name a type, and a topology'):
        Accelerator.parse('a', text)


def test_a_tpu_that_dataflow_lacks_is_refused():
    with pytest.raises(ValueError, match=r'Dataflow has type:tpu-v5-lite-podslice;topology:1x1'):
        Accelerator.parse('a', 'type:tpu-v5-lite-podslice;topology:16x16')


def test_later_entries_win_key_by_key():
    asked = hardware({'*': {'min_ram_gib': 16, 'cpu_count': 4}, 'flood': {'min_ram_gib': 48}})
    assert asked.needs_of('flood') == StageNeeds(min_ram_gib=48, cpu_count=4)
    assert asked.needs_of('baseline/fill') == StageNeeds(min_ram_gib=16, cpu_count=4)
    assert asked.hints_of('flood') == {'min_ram': '48GiB', 'cpu_count': '4'}


def test_stages_of_inner_runs_by_either_name():
    asked = hardware({'baseline/match': {'cpu_count': 8}, 'flood': {'cpu_count': 2}})
    assert asked.needs_of('baseline/match').cpu_count == 8
    assert asked.needs_of('match').cpu_count is None
    assert asked.needs_of('baseline/flood').cpu_count == 2


@pytest.mark.parametrize(
    ('section', 'message'),
    [
        ({'stage': {}}, "unknown config key 'resources.stage'"),
        ({'workers': {'fit': 1}}, "unknown config key 'resources.workers.fit'"),
        ({'stages': {'flood': {'ram': 1}}}, "unknown config key 'resources.stages.flood.ram'"),
        ({'stages': {'flood': {'min_ram_gib': -1}}}, 'resources.stages.flood.min_ram_gib is -1'),
        ({'stages': {'flood': {'accelerator': 'l4'}}}, "resources.stages.flood.accelerator is 'l4'"),
        ({'workers': {'num_workers': 0}}, 'resources.workers.num_workers is 0: must be at least 1'),
        ({'workers': {'fitting': 'all'}}, "must be one of 'stages', 'pool'"),
        ([], 'resources is []: must hold the mappings'),
    ],
)  # fmt: skip
def test_wrong_sections_are_refused(section, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Hardware.parse(section)


def test_one_pool_has_one_accelerator():
    stages = {'flood': {'accelerator': TPU}, 'match': {'accelerator': GPU}}
    assert hardware(stages).accelerator.chips == 4
    with pytest.raises(ValueError, match='ask for one accelerator, or use fitting: stages'):
        hardware(stages, fitting='pool')


def test_a_machine_that_lacks_the_tpu_is_refused():
    with pytest.raises(ValueError, match="comes with 'ct5lp-hightpu-4t'"):
        hardware({'flood': {'accelerator': TPU}}, fitting='pool', machine_type='n2-standard-8')


def test_names_of_no_stage_are_refused():
    asked = hardware({'floood': {'cpu_count': 2}, 'align_*': {'cpu_count': 2}})
    with pytest.raises(ValueError, match="'floood', which is no stage of this job"):
        asked.check_names(['flood', 'baseline/match'])
    hardware({'match': {'cpu_count': 2}}).check_names(['flood', 'baseline/match'])


def test_flags_of_a_tpu_pool():
    asked = hardware({'flood': {'accelerator': TPU}}, fitting='pool', max_num_workers=9)
    assert asked.beam_flags([]) == [
        '--worker_machine_type=ct5lp-hightpu-4t',
        '--max_num_workers=9',
        '--number_of_worker_harness_threads=4',
        '--experiments=no_use_multiple_sdk_containers',
        f'--dataflow_service_options=worker_accelerator={TPU}',
    ]
    assert asked.hints_of('flood') == {}


def test_flags_of_right_fitted_gpus():
    asked = hardware({'flood': {'accelerator': GPU}})
    assert asked.beam_flags([]) == [
        '--number_of_worker_harness_threads=2',
        '--experiments=no_use_multiple_sdk_containers',
    ]
    assert asked.hints_of('flood') == {'accelerator': GPU}


def test_without_wishes_there_are_no_flags():
    assert Hardware().beam_flags([]) == []
    assert Hardware.parse(None) == Hardware()


def test_the_command_line_goes_first():
    asked = hardware({'flood': {'accelerator': TPU}}, fitting='pool', max_num_workers=9)
    given = [
        '--machine_type=ct5lp-hightpu-4t', '--max_num_workers', '3',
        '--number_of_worker_harness_threads=1', '--experiment=use_multiple_sdk_containers',
        '--dataflow_service_option=worker_accelerator=type:x',
    ]  # fmt: skip
    assert asked.beam_flags(given) == []


def double(image):
    return image * 2


def build_double(tmp_path, name):
    source = Volume.open(f'{tmp_path}/em').spec
    target = dataclasses.replace(source, uri=f'{tmp_path}/{name}|neuroglancer-precomputed:')

    def build(root, run):
        root | MapBlocks(
            double, stage='double', grid=BlockGrid(source.bounds, (4, 8, 16)), run=run,
            reads={'image': source}, writes={'out': target},
        )  # fmt: skip

    return build


def graph(tmp_path, asked, **resources):
    """The portable pipeline of one stage: {transform: its environment's hints}."""
    run = Run(str(tmp_path / 'run'), Resources(1, 2**33, **resources), hardware=asked)
    pipeline = beam.Pipeline()
    build_double(tmp_path, 'out')(pipeline, run)
    proto = pipeline.to_runner_api()
    return {
        t.unique_name: dict(proto.components.environments[t.environment_id].resource_hints)
        for t in proto.components.transforms.values()
        if t.environment_id
    }


def test_only_the_work_of_a_stage_carries_its_hints(tmp_path):
    create(tmp_path / 'em')
    asked = hardware({'double': {'accelerator': TPU, 'min_ram_gib': 48}})
    found = graph(tmp_path, asked, fits_stages=True)
    expected = {
        'beam:resources:accelerator:v1': TPU.encode(),
        'beam:resources:min_ram_bytes:v1': str(48 * 2**30).encode(),
    }
    assert {name for name, hints in found.items() if hints} == {'double/Process'}
    assert found['double/Process'] == expected


def test_engines_that_know_no_hints_get_none(tmp_path):
    create(tmp_path / 'em')
    found = graph(tmp_path, hardware({'double': {'accelerator': TPU}}))
    assert not any(found.values())


def test_hints_change_no_key_and_no_byte(tmp_path):
    """A block that was done without hints is done with them, and the other way round."""
    create(tmp_path / 'em')
    build, plain = build_double(tmp_path, 'out'), Resources(1, 2**33)
    run_pipeline(tmp_path / 'run', build)
    before = tree_bytes(tmp_path)
    asked = hardware({'double': {'accelerator': TPU, 'min_ram_gib': 48}})
    for resources in (plain, dataclasses.replace(plain, fits_stages=True)):
        run = Run(str(tmp_path / 'run'), resources, hardware=asked)
        options = Options([], runner='DirectRunner', direct_num_workers=1)
        pipeline = beam.Pipeline(options=options)
        build(pipeline, run)
        counters = (
            pipeline.run()
            .metrics()
            .query(beam.metrics.MetricsFilter().with_name('blocks_reused'))['counters']
        )
        assert [counter.committed for counter in counters] == [27]
        assert tree_bytes(tmp_path / 'out') == {
            k.removeprefix('out/'): v for k, v in before.items() if k.startswith('out/')
        }


def test_memory_is_checked_against_what_the_stage_asks_for(tmp_path):
    create(tmp_path / 'em')
    build = build_double(tmp_path, 'out')
    for ram, cores, fits in ((0.25, 1, False), (0.25, None, True), (2, 8, False), (8, 8, True)):
        needs = {'min_ram_gib': ram} | ({'cpu_count': cores} if cores else {})
        resources = Resources(1, 2**33, fits_stages=True)
        run = Run(
            str(tmp_path / 'run'), resources, dry_run=True, hardware=hardware({'double': needs})
        )
        if fits:
            build(beam.Pipeline(), run)
        else:
            with pytest.raises(ValueError, match='stage double: a worker would need'):
                build(beam.Pipeline(), run)
