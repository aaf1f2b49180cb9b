"""What passes is waited for, what does not is said: with a bucket that has faults."""

from __future__ import annotations

import errno
import time

import numpy as np
import pytest

from h01_beam import objects, storage
from h01_beam.testing.faults import KINDS, FaultPlan
from h01_beam.volume import Volume
from tests.arrays import create, read_all

PASSING = [kind for kind in KINDS if kind not in ('forbidden', 'full')]


def _meet(bucket_emulator, kind, count=1, **values):
    quick = {'hung_s': 60.0, 'slow_s': 0.1, 'retry_after_s': 1}
    plan = FaultPlan(count=count, rate=1.0, kinds={kind: 1}, **{**quick, **values})
    bucket_emulator.inject(plan)


@pytest.mark.parametrize('kind', PASSING)
def test_small_files(bucket_emulator, gcs_bucket, kind):
    path = f'{gcs_bucket}/file'
    before = objects.retries()
    if kind not in ('cut', 'slow'):
        _meet(bucket_emulator, kind)
        storage.write_bytes(path, b'x' * 1000)
        assert bucket_emulator.faults() == {kind: 1}
    storage.write_bytes(path, b'y' * 1000)
    _meet(bucket_emulator, kind)
    assert storage.read_bytes(path) == b'y' * 1000
    assert bucket_emulator.faults() == {kind: 1}
    assert (objects.retries() > before) == (kind != 'slow')
    if kind not in ('cut', 'slow'):
        _meet(bucket_emulator, kind)
        storage.delete(path)
        assert bucket_emulator.faults() == {kind: 1} and not storage.exists(path)


@pytest.mark.parametrize('kind', PASSING)
def test_volumes(bucket_emulator, gcs_bucket, tmp_path, kind):
    remote = create(f'{gcs_bucket}/em', write=False)
    expected = read_all(create(tmp_path / 'em').spec.uri)
    if kind not in ('cut', 'slow'):
        _meet(bucket_emulator, kind, count=3)
        remote.write(remote.bounds, expected)
        assert bucket_emulator.faults() == {kind: 3}
    remote.write(remote.bounds, expected)
    _meet(bucket_emulator, kind, count=3)
    np.testing.assert_array_equal(remote.read(remote.bounds), expected)
    assert bucket_emulator.faults() == {kind: 3}


@pytest.mark.parametrize('kind', ['busy', 'down', 'cut', 'slow'])
def test_files_of_beam(bucket_emulator, gcs_bucket, kind):
    from apache_beam.io.filesystems import FileSystems

    path, data = f'{gcs_bucket}/beam.bin', bytes(range(256)) * 100
    if kind not in ('cut', 'slow'):
        _meet(bucket_emulator, kind)
    with FileSystems.create(path, compression_type='uncompressed') as file:
        file.write(data)
    _meet(bucket_emulator, kind)
    with FileSystems.open(path, compression_type='uncompressed') as file:
        assert file.read() == data
    assert sum(bucket_emulator.faults().values()) == 1


def test_retry_after_is_kept(bucket_emulator, gcs_bucket):
    _meet(bucket_emulator, 'busy_retry_after', retry_after_s=2)
    started = time.monotonic()
    storage.write_bytes(f'{gcs_bucket}/file', b'x')
    assert time.monotonic() - started >= 2


def test_what_does_not_pass_is_given_up(bucket_emulator, gcs_bucket, monkeypatch):
    retry = objects._retry().with_timeout(0.5)
    monkeypatch.setattr(objects, '_retry', lambda: retry)
    _meet(bucket_emulator, 'down', count=1000)
    with pytest.raises(OSError, match='file.* cannot be reached'):
        storage.write_bytes(f'{gcs_bucket}/file', b'x')


def test_an_object_without_permission(bucket_emulator, gcs_bucket):
    bucket_emulator.inject(FaultPlan(denied=('*/secret*',)))
    for access in (
        storage.read_bytes,
        lambda path: storage.write_bytes(path, b'x'),
        storage.exists,
    ):
        with pytest.raises(PermissionError, match=r'grant the account .*secret'):
            access(f'{gcs_bucket}/secret')
    storage.write_bytes(f'{gcs_bucket}/open', b'x')


def test_a_full_bucket(bucket_emulator, gcs_bucket):
    bucket_emulator.inject(FaultPlan(capacity_bytes=0))
    with pytest.raises(OSError, match=r'quota .*is exceeded; .*free space.*file') as caught:
        storage.write_bytes(f'{gcs_bucket}/file', b'x')
    assert caught.value.errno == errno.ENOSPC and objects.is_full(caught.value)


def test_volumes_without_permission_or_room(bucket_emulator, gcs_bucket):
    volume = create(f'{gcs_bucket}/em')
    bucket_emulator.inject(FaultPlan(denied=('*/em/*7-23*',)))
    with pytest.raises(ValueError, match=r'cannot read .*/em.*7-23') as caught:
        volume.read(volume.bounds)
    assert objects.way_out(caught.value) == objects.GRANT and not objects.is_full(caught.value)
    assert isinstance(Volume.open(volume.spec.uri), Volume)
    bucket_emulator.inject(FaultPlan(capacity_bytes=0))
    with pytest.raises(Exception, match='cannot write .*/em') as caught:
        volume.write(volume.bounds, np.ones(volume.bounds.shape, np.uint8))
    assert objects.is_full(caught.value) and objects.way_out(caught.value) == objects.MAKE_ROOM
