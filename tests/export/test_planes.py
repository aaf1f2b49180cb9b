import numpy as np
import pytest

from h01_beam.export.planes import Planes, central_box, read_planes
from h01_beam.geometry import BoundingBox
from h01_beam.volume import Volume, VolumeSpec


def position_encoded(box):
    z, y, x = np.meshgrid(*(np.arange(s, e) for s, e in zip(box.start, box.end)), indexing='ij')
    return (z * 10**6 + y * 10**3 + x).astype(np.uint64)


@pytest.mark.parametrize(
    ('bounds', 'voxel_size_nm', 'voxels', 'expected'),
    [
        # Smaller than the cube: all of it.
        (((3, 5, 7), (10, 20, 30)), (30, 10, 10), 512, ((3, 5, 7), (10, 20, 30))),
        # Larger: the middle, as thick in nm as it is wide.
        (((0, 0, 0), (1000, 1000, 1000)), (30, 10, 10), 300, ((450, 350, 350), (100, 300, 300))),
        (((0, 0, 100), (4, 1000, 1000)), (30, 10, 10), 300, ((0, 350, 450), (4, 300, 300))),
    ],
)
def test_central_box(bounds, voxel_size_nm, voxels, expected):
    box = central_box(BoundingBox(*bounds), voxel_size_nm, voxels)
    assert box == BoundingBox(*expected)


def test_planes_that_are_read_are_those_of_the_array(tmp_path):
    spec = VolumeSpec(
        uri=f'{tmp_path}/v|zarr3:',
        voxel_size_nm=(30, 10, 8),
        dtype='uint64',
        shape=(12, 30, 40),
        start=(3, 5, 7),
        chunk=(8, 16, 16),
        encoding='zstd',
        kind='segmentation',
    )
    volume, _ = Volume.create(spec)
    whole = position_encoded(spec.bounds)
    volume.write(spec.bounds, whole)
    box = BoundingBox((4, 10, 11), (7, 16, 20))
    read = read_planes(volume, box)
    expected = Planes.of(position_encoded(box), box.start)
    assert (read.box, read.centre) == (expected.box, expected.centre) == (box, (7, 18, 21))
    for name in ('yx', 'zx', 'zy'):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
    assert set(np.unique(read.zx // 1000 % 1000)) == {18}
