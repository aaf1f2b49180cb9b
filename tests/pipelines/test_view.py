"""The viewer as a user starts it, in a real browser."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image

from h01_beam.export.colors import segment_colors
from h01_beam.export.screenshot import NoBrowserError, find_browser
from h01_beam.geometry import BoundingBox
from h01_beam.run import Resources, Run
from h01_beam.testing.tubes import make_tubes
from h01_beam.volume import Volume, VolumeSpec

BOX = BoundingBox((3, 5, 7), (40, 120, 160))
VOXEL_SIZE_NM = (20.0, 10.0, 8.0)


@pytest.fixture(scope='module')
def tissue():
    return make_tubes(box=BOX, voxel_size_nm=VOXEL_SIZE_NM, seed=3)


@pytest.fixture
def run_dir(tmp_path, tissue):
    image, labels = tissue
    uri = f'{tmp_path}/em|neuroglancer-precomputed:'
    run = Run(str(tmp_path / 'run'), Resources.local(1))
    run.write_manifest('segmentation', {'image': uri}, {})
    outputs = [
        (uri, image, 'image', 'raw', None),
        (run.volume_uri('segmentation'), labels, 'segmentation', 'compressed_segmentation',
         (64, 64, 128)),
    ]  # fmt: skip
    for uri, array, kind, encoding, shard in outputs:
        spec = VolumeSpec(
            uri=uri,
            voxel_size_nm=VOXEL_SIZE_NM,
            dtype=array.dtype.name,
            shape=BOX.shape,
            start=BOX.start,
            chunk=(32, 32, 32),
            shard=shard,
            encoding=encoding,
            kind=kind,
        )
        volume, _ = Volume.create(spec)
        volume.write(BOX, array)
    return run.path


def view(repository, *flags, **options):
    command = [sys.executable, '-m', 'pipelines.view', *flags]
    return subprocess.Popen(
        command,
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_screenshot_shows_the_segments_over_the_image(repository, run_dir, tissue, tmp_path):
    try:
        find_browser()
    except NoBrowserError as error:
        pytest.skip(str(error))
    picture, state_file = tmp_path / 'view.png', tmp_path / 'state.json'
    process = view(
        repository, '--run_dir', run_dir, '--screenshot', str(picture), '--state', str(state_file)
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert('RGB')).astype(int)
    state = json.loads(state_file.read_text())
    image, labels = (_xy_plane(array, state) for array in tissue)
    seen = _pixels_of_plane(pixels, state, labels.shape)

    # Where there is no segment (membranes), the image's grey; elsewhere the segments' colours.
    spread = seen.max(axis=2) - seen.min(axis=2)
    assert np.median(spread[labels == 0]) < 8
    assert np.median(spread[labels != 0]) > 40
    agree = []
    for segment in np.unique(labels[labels != 0]):
        here = labels == segment
        if np.count_nonzero(here) < 50:
            continue
        color = np.median(seen[here], axis=0)
        expected = 0.4 * segment_colors(segment) + 0.6 * np.median(image[here])
        agree.append(np.abs(color - expected).max() < 12)
    assert len(agree) >= 8
    assert np.mean(agree) >= 0.9, agree


def _xy_plane(array, state):
    """The middle section; images in the grey values that they are shown in."""
    plane = array[int(state['position'][2]) - BOX.start[0]].astype(np.int64)
    if array.dtype != np.uint8:
        return plane
    low, high = state['layers'][0]['shaderControls']['normalized']['range']
    return np.clip((plane - low) * 255 / (high - low), 0, 255)


def _pixels_of_plane(pixels, state, shape):
    """The pixel at the centre of each voxel of the xy panel, yx RGB."""
    panel = state['layout']['children'][0]
    scale = panel['crossSectionScale']['value'] * min(VOXEL_SIZE_NM)
    centre = state['position'][1::-1]
    middle = (pixels.shape[0] / 2, panel['flex'] / 2)
    y, x = (
        np.round(
            middle[axis]
            + (BOX.start[1 + axis] + np.arange(shape[axis]) + 0.5 - centre[axis])
            * VOXEL_SIZE_NM[1 + axis]
            / scale
        ).astype(int)
        for axis in (0, 1)
    )
    return pixels[np.ix_(y, x)]


def test_it_serves_until_it_is_interrupted(repository, run_dir):
    # A shell that starts a job in the background has it ignore Ctrl-C, and children inherit that.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = view(repository, '--run_dir', run_dir, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, inherited)
    try:
        line = process.stdout.readline()
        assert line.startswith('image, segmentation: http://127.0.0.1:')
        with urllib.request.urlopen(line.split()[-1], timeout=10) as page:
            assert b'euroglancer' in page.read()
        assert 'Ctrl-C' in process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, '')


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ([], 'nothing to view: give --run_dir, --volume or --truth'),
        (['--run_dir', '/nowhere'], "run_dir is '/nowhere': holds no run"),
        (['--volume', '/nowhere/em'], "volume '/nowhere/em': nothing there that is a volume"),
    ],
)
def test_bad_input(repository, flags, message):
    process = view(repository, *flags)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith(f'error: {message}')
    assert 'Traceback' not in err
