"""From tiles to an aligned volume: what goes in comes out aligned, and all of it is accounted for."""

import dataclasses
import json

import numpy as np
import pytest

from h01_beam.acquisition.importers import ImportConfig
from h01_beam.alignment.account import describe_sections
from h01_beam.alignment.coarse.blocks import MATCHES, MeasureFrame, PlaceSections
from h01_beam.alignment.coarse.features import CoarseConfig
from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.figures import figures
from h01_beam.alignment.frames import Slices, ToFrame, rescale_affine
from h01_beam.alignment.job import AlignJob, highlights, select
from h01_beam.alignment.stage import build_align_job
from h01_beam.export.finished_run import FinishedRun
from h01_beam.finish import FinishRun
from h01_beam.geometry import Block
from h01_beam.imaging.contrast import ClaheConfig, ContrastConfig, MatchConfig
from h01_beam.imaging.masks import TissueConfig
from h01_beam.registration.flow import FlowConfig, FlowLevel
from h01_beam.registration.maps import CoordinateMap
from h01_beam.stitching.config import StitchConfig
from h01_beam.stitching.mesh import ElasticConfig
from h01_beam.stitching.offsets import OffsetConfig
from h01_beam.volume import Volume
from pipelines.align import show_results
from tests.alignment.acquisition import read, write_acquisition
from tests.arrays import box, run_pipeline

FLOW = FlowConfig(
    stride=16,
    levels=(
        FlowLevel(downsample=1, patch=40, search=8),
        FlowLevel(downsample=1, patch=32, search=4),
    ),
    min_component=4,
)
JOB = AlignJob(
    tiles=ImportConfig(source='given', kind='manifest', pixel_nm=4.0),
    stitch=StitchConfig(
        offsets=OffsetConfig(search=16),
        elastic=ElasticConfig(stride=40),
        cell_tiles=2,
        downsample=1,
        montage_block=(256, 256),
    ),
    align=AlignConfig(
        coarse=CoarseConfig(max_features=400, allow_mirrored=False, neighbours=2),
        flow=FLOW,
        tissue=TissueConfig(density=0.02, radius=4),
        margin=32,
        flow_block=(128, 256),
        block=(256, 256),
    ),
)


def run(folder, acquisition, job=JOB):
    def build(root, run):
        run.write_manifest('align', job, {})
        build_align_job(root, acquisition, job, run)
        root | FinishRun(run, figures=[figures], highlights=highlights, sections=describe_sections)

    return run_pipeline(folder, build)


@pytest.fixture(scope='module')
def aligned(tmp_path_factory):
    folder = tmp_path_factory.mktemp('aligned')
    (folder / 'tiles').mkdir()
    acquisition = write_acquisition(folder / 'tiles')
    return folder, acquisition, run(folder / 'run', acquisition)


def whole(run, name):
    volume = Volume.open(run.volume_uri(name))
    return volume.read(volume.bounds)


def test_sections_fit_each_other(aligned):
    _, _, finished = aligned
    image, mask = whole(finished, 'image'), whole(finished, 'mask') > 0
    stitched = whole(finished, 'montage')
    for first, second in ((0, 1), (1, 3)):
        both = mask[first] & mask[second]
        assert both.sum() > 60_000
        fit = np.corrcoef(image[first][both], image[second][both])[0, 1]
        before = (stitched[first] > 0) & (stitched[second] > 0)
        unaligned = np.corrcoef(stitched[first][before], stitched[second][before])[0, 1]
        assert fit > 0.9 and fit > unaligned + 0.3


def test_every_section_and_tile_is_accounted_for(aligned):
    folder, _, finished = aligned
    image, mask = whole(finished, 'image'), whole(finished, 'mask')
    assert not image[2].any() and not mask[2].any()
    assert mask[[0, 1, 3]].any(axis=(1, 2)).all()
    told = describe_sections(str(folder / 'run'))
    assert [s['state'] for s in told] == ['placed', 'placed', 'missing', 'placed']
    assert [s['bad'] for s in told] == [0, 1, 0, 0]
    assert told[1]['tiles'] == 9 and '1 of 9' in told[1]['reason']
    assert all(s['seam_rms_px'] < 0.5 for s in told if s['tiles'])
    assert all(s['loose_tiles'] == 0 for s in told)
    layers = [(layer.name, layer.kind) for layer in FinishedRun(str(folder / 'run')).layers()]
    assert layers == [('image', 'image'), ('mask', 'segmentation')]
    # Where the bad tile was, nothing is made up.
    assert mask[1].sum() < mask[0].sum() - 3000


def test_the_same_again_runs_nothing(aligned):
    folder, _, finished = aligned
    before = whole(finished, 'image')
    again = run(folder / 'run', read(folder / 'tiles'))
    stages = json.loads((folder / 'run' / 'report.json').read_text())['stages']
    assert sum(s['blocks_run'] for s in stages.values()) == 0
    assert len(stages) > 12
    np.testing.assert_array_equal(whole(again, 'image'), before)


@pytest.mark.slow
def test_blocks_do_not_show(aligned, tmp_path):
    folder, acquisition, finished = aligned
    job = dataclasses.replace(
        JOB,
        stitch=dataclasses.replace(JOB.stitch, montage_block=(512, 256), cached_tiles=3),
        align=dataclasses.replace(JOB.align, block=(512, 1024)),
    )
    other = run(tmp_path / 'run', acquisition, job)
    for name in ('montage', 'image', 'mask'):
        np.testing.assert_array_equal(whole(finished, name), whole(other, name), err_msg=name)


@pytest.mark.slow
def test_even_contrast_lies_beside_the_image(aligned, tmp_path, capsys):
    _, acquisition, finished = aligned
    contrast = ContrastConfig(
        match=MatchConfig(min_pixels=1000), clahe=ClaheConfig(cell=64), level_mip=1
    )
    other = run(tmp_path / 'run', acquisition, dataclasses.replace(JOB, contrast=contrast))
    for name in ('image', 'mask'):
        np.testing.assert_array_equal(whole(finished, name), whole(other, name), err_msg=name)
    image, mask, even = (whole(other, name) for name in ('image', 'mask', 'even'))
    np.testing.assert_array_equal(even == 0, mask == 0)
    assert (even != image).any(axis=(1, 2)).tolist() == [True, True, False, True]
    told = describe_sections(str(tmp_path / 'run'))
    assert [s['levels_moved'] is None for s in told] == [False, False, True, False]
    assert 'levels_moved' not in describe_sections(finished.path)[0]
    # Of the tissue, a quarter of the pixels, less what lies at its edge.
    stages = json.loads((tmp_path / 'run' / 'report.json').read_text())['stages']
    assert 0.2 < stages['count_levels']['pixels'] / (mask > 0).sum() < 0.25
    layers = [layer.name for layer in FinishedRun(str(tmp_path / 'run')).layers()]
    assert layers == ['image', 'even', 'mask']
    show_results(other)
    assert f'even{26 * " "}{other.volume_uri("even")}' in capsys.readouterr().out


def test_a_range_of_sections(aligned):
    _, acquisition, _ = aligned
    part = select(acquisition, (1, 2))
    assert part.sections['section'].tolist() == [1, 2]
    assert set(part.tiles['section'].tolist()) == {1}
    assert select(acquisition, None) is acquisition
    for bad in ((3, 1), (2, 2), (9, 12), (1,)):
        with pytest.raises(ValueError, match='section_range is'):
            select(acquisition, bad)


def test_slices_of_missing_and_double_sections():
    sections = {
        'section': np.array([5, 6, 8, 9]),
        'thickness_nm': np.array([30.0, 62.0, 31.0, 29.0]),
    }
    assert Slices.of(sections, 30.0).positions == (0, 1, 1, 2, 3)
    # A thick section does not displace the one after it.
    sections['section'] = np.array([5, 6, 7, 10])
    assert Slices.of(sections, 30.0).positions == (0, 1, 2, -1, -1, 3)


def test_frames_of_pixels_of_several_sizes():
    rng = np.random.default_rng(0)
    affine = np.concatenate([np.eye(2) + rng.normal(0, 0.1, (2, 2)), rng.normal(0, 9, (2, 1))], 1)
    fine = rescale_affine(affine, 4.0, 7.0)
    points = rng.uniform(0, 100, (2, 20))
    coarse = (points - 1.5) / 4
    expected = 4 * (affine[:, :2] @ coarse + affine[:, 2:]) + 1.5 + 7
    np.testing.assert_allclose(fine[:, :2] @ points + fine[:, 2:], expected, atol=1e-9)
    mesh = CoordinateMap(np.zeros((2, 9, 9), np.float32), (0.0, 0.0), 16.0)
    to_frame = ToFrame(fine, mesh, 2)
    there = 2 * (fine[:, :2] @ ((points - 0.5) / 2) + fine[:, 2:]) + 0.5
    inside = (there > 0).all(axis=0) & (there < 240).all(axis=0)
    np.testing.assert_allclose(to_frame(there)[:, inside], points[:, inside], atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'value'),
    [('thumbnail', 10), ('neighbours', 0), ('margin', -1), ('flow_block', (100, 256)),
     ('block', (10, 10))],
)  # fmt: skip
def test_bad_configurations_name_the_field(name, value):
    with pytest.raises(ValueError, match=f'align.{name} is'):
        AlignConfig(**{name: value})


def test_without_any_match_no_section_counts_as_placed():
    block = PlaceSections(AlignConfig(), 3, (64, 64), 2)
    found = block(MATCHES.empty(), None)
    assert found.rows['placement']['state'].tolist() == ['unmatched'] * 3
    assert found.metrics['sections_unmatched'] == 3


def test_flow_that_ends_coarse_is_refused():
    coarse = FlowConfig(levels=(FlowLevel(downsample=2, patch=64, search=12),))
    with pytest.raises(ValueError, match=r'align\.flow\.levels ends with downsample 2'):
        AlignConfig(flow=coarse)


def test_beyond_the_last_nodes_the_mesh_goes_on_as_at_the_border():
    vectors = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    mesh = CoordinateMap(vectors, (0.0, 0.0), 16.0)
    to_frame = ToFrame(np.eye(2, 3), mesh, 1)
    places = np.array([[64.0, 75.0, 20.0, 79.0], [80.0, 80.0, 95.0, 95.0]])
    ends = np.minimum(places, [[64.0], [80.0]])
    np.testing.assert_allclose(to_frame(places), places + (mesh(ends) - ends), atol=1e-6)
    assert np.isfinite(to_frame.over((0, 0), (80, 96)).vectors).all()


def test_the_frame_tells_what_it_cuts_off():
    affines = {'section': np.array([3]), 'state': np.array(['placed'], object)}
    values = {'yy': 1.0, 'yx': 0.0, 'y1': 32.0 - 80, 'xy': 0.0, 'xx': 1.0, 'x1': 32.0}
    affines |= {name: np.array([value]) for name, value in values.items()}
    tissue = np.ones((1, 100, 100), np.uint8)
    block = Block((3, 0, 0), box((3, 0, 0), (1, 1, 1)), box((3, 0, 0), (1, 1, 1)))
    rows = MeasureFrame(4, 32, (464, 464))(tissue, affines, block).rows['frame']
    # Rows up to the 12th lie above the frame, the first by 46.5 pixels.
    assert rows['cut_off'][0] == pytest.approx(0.12) and rows['margin'][0] == 79
