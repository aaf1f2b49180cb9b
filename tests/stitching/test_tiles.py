"""Images of tiles: kept, scaled, and named when their files change during a run."""

import numpy as np
import pytest

from h01_beam import storage
from h01_beam.acquisition.decode import TileError
from h01_beam.stitching.tiles import TileImages
from tests.acquisition.images import encode, grid, tissue, write_images


@pytest.fixture
def tiles(tmp_path):
    found = grid(sections=(4,), folder=str(tmp_path))
    write_images(found)
    return found


def test_the_latest_images_are_kept(tiles):
    images = TileImages(tiles, None, keep=2)
    seen = [images[row] for row in (0, 1, 2)]
    assert images[2] is seen[2] and images[1] is seen[1] and images[0] is not seen[0]
    np.testing.assert_array_equal(images[0], seen[0])


@pytest.mark.parametrize(
    ('change', 'what'),
    [
        (None, 'there is no such file'),
        (b'', 'the file is empty'),
        (encode(tissue(9)[:-1], '.png'), r'height and width are \(299, 320\): must be'),
        (encode(tissue(9), '.png')[:-40], 'the file ends early'),
    ],
)
def test_a_file_that_changes_in_mid_run_is_named(tiles, change, what):
    path = tiles['path'][3]
    if change is None:
        storage.delete(path)
    else:
        storage.write_bytes(path, change)
    with pytest.raises(TileError, match=what) as caught:
        TileImages(tiles, None, keep=2)[3]
    message = str(caught.value)
    assert f'tile section 4 field 1 beam 1, {path!r}, was usable' in message
    assert message.count(path) == 1 and 'give the same command again' in message


def test_a_file_that_was_replaced_by_another_image_is_named(tiles):
    tiles['sha256'][0] = 'a' * 64
    with pytest.raises(TileError, match=r'section 4 field 0 beam 0, .* sha256 is .*put the file'):
        TileImages(tiles, None, keep=2)[0]
