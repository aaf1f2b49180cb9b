"""What bad input gets: one test for each row of the README's table. Nothing may have started."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from h01_beam import storage
from h01_beam.config import from_dict, load
from h01_beam.models import ModelRef
from h01_beam.run import Resources, Run
from h01_beam.segmentation.config import SegmentConfig
from h01_beam.segmentation.stage import build_segment
from h01_beam.volume import Volume, VolumeSpec
from pipelines import launch
from pipelines.ingest import flags as ingest_flags
from pipelines.ingest import main as ingest_main
from tests.models.bright_ffn import write_bright_ffn

VOXEL_SIZE_NM = (20.0, 10.0, 10.0)


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bright_ffn(
        tmp_path_factory.mktemp('model') / 'bright.keras', voxel_size_nm=VOXEL_SIZE_NM
    )


def _image(folder: Path, shape=(16, 32, 32), dtype='uint8', voxel_size_nm=VOXEL_SIZE_NM) -> str:
    spec = VolumeSpec(
        uri=f'{folder}/em|neuroglancer-precomputed:', voxel_size_nm=voxel_size_nm, dtype=dtype,
        shape=shape, chunk=(16, 16, 16),
    )  # fmt: skip
    Volume.create(spec)
    return spec.uri


def _segment_error(folder: Path, model: str, **changes) -> str:
    """The message of a segmentation job that must be refused before anything is written."""
    mapping = {
        'model': model,
        'grid': {'block_shape': [16, 16, 16], 'halo': [4, 8, 8]},
        'output': {'chunk': [16, 16, 16]},
        **changes,
    }
    run = Run(str(folder / 'run'), Resources(1, 8 * 2**30), dry_run=True)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        import apache_beam as beam

        build_segment(beam.Pipeline(), from_dict(SegmentConfig, mapping), run)
    assert not (folder / 'run').exists()
    return str(caught.value)


def _ingest(*arguments: str) -> int:
    args, args.beam = ingest_flags().parse_known_args(list(arguments))
    return ingest_main(args)


def test_missing_file(tmp_path, capsys) -> None:
    code = _ingest(
        '--input', f'{tmp_path}/none.h5', '--output', f'{tmp_path}/em', '--voxel_size_nm=30,8,8'
    )  # fmt: skip
    assert code == launch.BAD_INPUT
    assert 'no such file' in capsys.readouterr().err
    assert not (tmp_path / 'em' / 'info').exists()


def test_missing_image_and_missing_model(tmp_path, model) -> None:
    assert 'nothing there that is a volume' in _segment_error(
        tmp_path, model, image=f'{tmp_path}/none'
    )
    message = _segment_error(tmp_path, f'{tmp_path}/none.keras', image=_image(tmp_path))
    assert 'none.keras' in message and 'no such file' in message


def test_wrong_dtype(tmp_path, model) -> None:
    message = _segment_error(tmp_path, model, image=_image(tmp_path, dtype='uint16'))
    assert re.search(r'uint16.*must be uint8.*--grey_range', message)


def test_wrong_rank(tmp_path) -> None:
    with h5py.File(tmp_path / 'em.h5', 'w') as file:
        file['raw'] = np.zeros((2, 4, 5, 6), np.uint8)
    with pytest.raises(ValueError, match=r'rank 4.*rank 3 in z, y, x order'):
        Volume.open(f'{tmp_path}/em.h5')


def test_voxel_size_that_contradicts_the_model(tmp_path, model) -> None:
    message = _segment_error(tmp_path, model, image=_image(tmp_path, voxel_size_nm=(40, 4, 4)))
    assert '(40.0, 4.0, 4.0)' in message and '(20.0, 10.0, 10.0)' in message
    assert 'resample' in message


def test_swapped_axis_order(tmp_path, model) -> None:
    message = _segment_error(tmp_path, model, image=_image(tmp_path, voxel_size_nm=(10, 10, 20)))
    assert 'z and x seem swapped' in message


def test_voxel_size_of_the_config_is_used_when_the_card_has_none(tmp_path) -> None:
    bare = write_bright_ffn(tmp_path / 'bare.keras')
    image = _image(tmp_path, voxel_size_nm=(30, 8, 8))
    message = _segment_error(tmp_path, bare, image=image, model_voxel_size_nm=[10, 10, 10])
    assert 'was made for (10.0, 10.0, 10.0)' in message


def test_empty_volume(tmp_path, capsys) -> None:
    np.save(tmp_path / 'empty.npy', np.zeros((0, 4, 4), np.uint8))
    code = _ingest(
        '--input', f'{tmp_path}/empty.npy', '--output', f'{tmp_path}/em', '--voxel_size_nm=30,8,8'
    )  # fmt: skip
    assert code == launch.BAD_INPUT
    assert 'empty' in capsys.readouterr().err


def test_nan(tmp_path, capsys) -> None:
    array = np.ones((4, 8, 8), np.float32)
    array[2, 3, 5] = np.nan
    np.save(tmp_path / 'nan.npy', array)
    code = _ingest(
        '--input', f'{tmp_path}/nan.npy', '--output', f'{tmp_path}/em', '--voxel_size_nm=30,8,8',
        '--direct_num_workers=1',
    )  # fmt: skip
    assert code == launch.FAILED
    assert 'NaN or infinite, the first at (2, 3, 5)' in capsys.readouterr().err


def test_volume_smaller_than_one_field_of_view(tmp_path, model) -> None:
    message = _segment_error(tmp_path, model, image=_image(tmp_path, shape=(4, 32, 32)))
    assert 'smaller than one field of view' in message and '(4, 32, 32)' in message


def test_checkpoint_of_another_architecture(tmp_path, model) -> None:
    import tensorflow as tf

    from models.ffn.convert import read_checkpoint

    other = tf.Module()
    other.v = tf.Variable(tf.zeros((3, 3, 8)), name='transformer/attention')
    prefix = tf.train.Checkpoint(net=other).write(str(tmp_path / 'other.ckpt'))
    with pytest.raises(ValueError, match='v/|attention|net'):
        read_checkpoint(prefix)


def test_file_that_is_no_model(tmp_path) -> None:
    (tmp_path / 'x.keras').write_bytes(b'not a zip archive')
    with pytest.raises(ValueError, match='not a .keras archive'):
        ModelRef.resolve(f'{tmp_path}/x.keras')


def test_unknown_config_key(tmp_path) -> None:
    path = tmp_path / 'run.yaml'
    path.write_text('image: em\nmodel: m.keras\nffn: {move_treshold: 0.8}\n')
    with pytest.raises(ValueError, match=r'ffn\.move_treshold.*did you mean.*move_threshold'):
        from_dict(SegmentConfig, load(str(path)))


def test_unwritable_run_directory(tmp_path) -> None:
    (tmp_path / 'file').write_text('not a folder')
    with pytest.raises(OSError, match='cannot write there') as caught:
        Run(str(tmp_path / 'file' / 'run'), Resources(1, 2**30))
    assert 'run_dir is' in str(caught.value)


def test_full_disk(tmp_path, capsys, monkeypatch) -> None:
    np.save(tmp_path / 'em.npy', np.ones((8, 16, 16), np.uint8))

    def full(self, box, array) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Volume, 'write', full)
    code = _ingest(
        '--input', f'{tmp_path}/em.npy', '--output', f'{tmp_path}/em', '--voxel_size_nm=30,8,8',
        '--direct_num_workers=1',
    )  # fmt: skip
    assert code == launch.FAILED
    message = capsys.readouterr().err
    assert 'the disk is full' in message and 'finished blocks are kept' in message.lower()


def test_corrupt_chunk(tmp_path) -> None:
    uri = _image(tmp_path)
    volume = Volume.open(uri)
    volume.write(volume.bounds, np.ones(volume.bounds.shape, np.uint8))
    chunk = next((tmp_path / 'em').glob('*/*-*'))
    chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(ValueError, match='cannot read .* of .*em'):
        Volume.open(uri).read(volume.bounds)


def test_storage_reports_what_is_missing(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f'{tmp_path}/none')
