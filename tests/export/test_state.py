import json

import pytest

from h01_beam.export.state import FILL, PICTURE, StateLayer, build_picture, build_state
from h01_beam.volume import VolumeSpec


def layer(name='image', kind='image', voxel_size_nm=(30.0, 8.0, 6.0), **fields):
    spec = VolumeSpec(
        uri='/v|npy:',
        voxel_size_nm=voxel_size_nm,
        dtype='uint8',
        shape=(10, 100, 200),
        start=(3, 5, 7),
    )
    return StateLayer(name=name, source=f'precomputed://{name}', kind=kind, spec=spec, **fields)


def test_dimensions_are_metres_in_xyz_and_the_centre_is_shown():
    state = build_state([layer()])
    assert list(state['dimensions']) == ['x', 'y', 'z']
    scales = [scale for scale, unit in state['dimensions'].values() if unit == 'm']
    assert scales == pytest.approx([6e-9, 8e-9, 30e-9])
    assert state['position'] == [107, 55, 8]
    json.dumps(state)


def test_a_volume_without_voxel_size_takes_the_given_one():
    state = build_state([layer(voxel_size_nm=None)], fallback_nm=(30, 8, 6))
    assert state == build_state([layer()])
    assert state['showScaleBar']


def test_without_any_voxel_size_no_length_is_shown():
    assert not build_state([layer(voxel_size_nm=None)])['showScaleBar']


def test_segments_are_all_shown_and_images_have_their_grey_range():
    image, labels = build_state([layer(grey_range=(20, 180)), layer('truth', 'segmentation')])[
        'layers'
    ]
    assert image['shaderControls'] == {'normalized': {'range': [20, 180]}}
    assert '#uicontrol invlerp normalized' in image['shader']
    assert labels['type'] == 'segmentation'
    assert labels['segments'] == []
    assert labels['ignoreNullVisibleSet'] and labels['hideSegmentZero']


def test_every_plane_of_a_picture_is_filled_and_not_cut():
    layout = build_picture([layer()])['layout']
    plane, column = layout['children']
    width, height = PICTURE
    assert plane['flex'] + column['flex'] == width
    # 10 x 100 x 200 voxels of 30 x 8 x 6 nm are 50 x 133.3 x 200 of the finest edge.
    sizes = {'xy': (200, 400 / 3), 'xz': (200, 50), 'yz': (50, 400 / 3)}
    panels = {'xy': (plane['flex'], height)}
    panels |= dict.fromkeys(('xz', 'yz'), (column['flex'], height / 2))
    for child in (plane, *column['children']):
        name = child['layout']
        scale = child['crossSectionScale']['value']
        filled = max(size / scale / room for size, room in zip(sizes[name], panels[name]))
        assert filled == pytest.approx(FILL, rel=0.01)
