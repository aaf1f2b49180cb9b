"""Causal alignment: sections that are added change no earlier one, and run nothing of them again."""

import dataclasses
import json

import numpy as np
import pytest

from h01_beam.alignment.account import describe_sections
from h01_beam.alignment.coarse.causal import place_next
from h01_beam.alignment.coarse.features import CoarseConfig, Match
from h01_beam.alignment.elastic.mesh_blocks import BlocksConfig
from h01_beam.imaging.illumination import FlatFieldConfig
from tests.alignment.acquisition import write_acquisition
from tests.alignment.test_stage import JOB, run, select, whole

STAGES = (
    'sum_lighting', 'solve_lighting', 'match_seams', 'render_montage', 'find_tissue', 'match_sections', 'place_sections', 'measure_frame', 'render_rough', 'flow_1',
    'flow_2', 'relax_mesh_', 'measure_links', 'render_image',
)  # fmt: skip


@pytest.mark.slow  # The acquisition is aligned twice.
def test_a_section_that_is_added_changes_no_earlier_one(tmp_path):
    blocks = BlocksConfig(tile=16, halo=6, coarsest=16, sweeps=2)
    align = dataclasses.replace(JOB.align, causal=True, mesh_blocks=blocks)
    # So few tiles tell little of lighting: here they shall, as it looks at sections before.
    lit = dataclasses.replace(JOB.stitch, flat_field=FlatFieldConfig(min_tiles=9, degree=1))
    job = dataclasses.replace(JOB, align=align, stitch=lit)
    (tmp_path / 'tiles').mkdir()
    acquisition = write_acquisition(tmp_path / 'tiles', sections=5)
    first = run(tmp_path / 'run', select(acquisition, (0, 3)), job)
    before = {name: whole(first, name) for name in ('image', 'mask', 'mesh')}
    second = run(tmp_path / 'run', acquisition, job)
    for name, array in before.items():
        after = whole(second, name)
        z = array.ndim - 3
        assert after.shape[z] == 5
        np.testing.assert_array_equal(after.take(range(4), z), array, err_msg=name)
    image, mask = whole(second, 'image'), whole(second, 'mask') > 0
    both = mask[3] & mask[4]
    assert np.corrcoef(image[3][both], image[4][both])[0, 1] > 0.9
    stages = json.loads((tmp_path / 'run' / 'report.json').read_text())['stages']
    lighting = stages['solve_lighting']
    assert lighting.get('fields', 0) + lighting.get('common_fields', 0) > 0
    for name, stage in stages.items():
        if name.startswith(STAGES):
            # All blocks of the one section that is new.
            assert stage['blocks_run'] * 5 == stage['blocks'], name
    told = describe_sections(str(tmp_path / 'run'))
    assert [s['state'] for s in told] == ['placed', 'placed', 'missing', 'placed', 'placed']


def turned(angle, shift):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


@pytest.mark.parametrize('flipped', [False, True])
def test_a_section_is_laid_on_those_before_it(flipped):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (60, 2))
    truth = turned(0.3, (5.0, -7.0))
    if flipped:
        truth[:, 1] *= -1
    placed = {0: turned(-0.2, (3.0, 1.0)), 1: turned(0.1, (0.0, 9.0))}
    matches = []
    there = points @ truth[:, :2].T + truth[:, 2]
    for z, affine in placed.items():
        linear = np.linalg.inv(affine[:, :2])
        other = (there - affine[:, 2]) @ linear.T
        other[:4] += 60
        matches.append(Match(2, z, points, other, flipped))
    found = place_next(2, matches, placed, (50.0, 50.0), CoarseConfig())
    np.testing.assert_allclose(found.affine, truth, atol=0.05)
    assert found.misfit < 0.1 and found.matches == 120
    assert place_next(2, matches, {7: truth}, (50.0, 50.0), CoarseConfig()) is None
