from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from h01_beam import finish, storage, tables
from h01_beam.blockwise import MapBlocks
from h01_beam.finish import FinishRun, StageSummary
from h01_beam.geometry import BlockGrid, BoundingBox, CoreBox
from h01_beam.plan import Read, Write
from h01_beam.run import Run
from tests.arrays import run_pipeline
from tests.blocks import (
    Mean,
    grid_of,
    noisy_image,
    target,
)


@pytest.fixture
def source(tmp_path):
    return noisy_image(tmp_path)


def record(index):
    return {
        'index': index, 'ran': index % 3 > 0, 'digest': f'{2**127 * (index % 2) + 7 * index:032x}',
        'rows': index, 'seconds': 0.5, 'started': 100.0 + index, 'ended': 101.0 + index,
        'metrics': {'steps': index, 'peak_memory_bytes': 1000 - index},
    }  # fmt: skip


def test_summaries_do_not_depend_on_the_order():
    combine, records = StageSummary(), [record(i) for i in range(8)]
    results = set()
    for order in itertools.islice(itertools.permutations(range(8)), 0, 40320, 997):
        halves = []
        for part in (order[:3], order[3:], ()):
            total = combine.create_accumulator()
            for index in part:
                total = combine.add_input(total, records[index])
            halves.append(total)
        summary = combine.extract_output(combine.merge_accumulators(halves))
        results.add(json.dumps(summary, sort_keys=True))
    (only,) = results
    summary = json.loads(only)
    assert (summary['blocks'], summary['blocks_run'], summary['blocks_reused']) == (8, 5, 3)
    assert summary['steps'] == 28 and summary['peak_memory_bytes'] == 1000
    assert summary['wall_seconds'] == 7.0 and summary['seconds'] == 4.0


def test_summaries_change_with_any_digest():
    combine = StageSummary()

    def digest(records):
        total = combine.create_accumulator()
        for item in records:
            total = combine.add_input(total, item)
        return combine.extract_output(total)['digest']

    records = [record(i) for i in range(4)]
    changed = [*records[:3], dict(records[3], digest=records[2]['digest'])]
    swapped = [*changed[:2], dict(records[2], digest=records[3]['digest']), changed[3]]
    assert len({digest(records), digest(changed), digest(swapped)}) == 3


def test_the_report_waits_for_all_stages(tmp_path, source):
    output = target(tmp_path / 'out', source)

    def build(root, run):
        run.write_manifest('filter', {'radius': 2}, {})
        root | MapBlocks(
            Mean(), stage='filter', grid=grid_of(source), run=run,
            reads={'image': Read(source)}, writes={'filtered': Write(output, CoreBox())},
        )  # fmt: skip
        root | FinishRun(
            run, highlights=lambda content: {'blocks': content['stages']['filter']['blocks']}
        )

    run_pipeline(tmp_path / 'run', build)
    report = json.loads((tmp_path / 'run/report.json').read_text())
    assert report['highlights'] == {'blocks': 27}
    assert report['stages']['filter']['blocks_run'] == 27
    assert report['stages']['filter']['peak_memory_bytes'] > 2**20
    assert '<h1>Filter report</h1>' in (tmp_path / 'run/report.html').read_text()


def test_old_keys_do_not_vouch_for_new_tables(tmp_path, monkeypatch):
    """Killed between a compacted table and its key, then back to the rows before."""
    grid, schema = (
        BlockGrid(BoundingBox((0, 0, 0), (1, 1, 1)), (1, 1, 1)),
        tables.Schema({'n': 'int64'}),
    )
    run = Run.at(str(tmp_path))

    def compact(digest, n):
        part = tables.to_parquet({'n': np.array([n])}, schema)
        storage.write_bytes(run.table_part('t', (0, 0, 0)), part)
        return finish._join_parts((0, (digest, 0)), run.path, 't', grid, schema)

    assert compact(1, 10) == (0, 1)
    assert compact(1, 10) == (0, None)
    write = storage.write_bytes

    def killed(path, data):
        if path.endswith('.key'):
            raise RuntimeError('killed')
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, 'write_bytes', killed)
        with pytest.raises(RuntimeError, match='killed'):
            compact(2, 20)
    assert compact(1, 10) == (0, 1)
    rows = tables.from_parquet((tmp_path / 'tables/t/000000.parquet').read_bytes())
    assert rows['n'].tolist() == [10]
