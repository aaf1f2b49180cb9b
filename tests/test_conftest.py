"""Every client that the project uses reads and writes the bucket of the `gcs_bucket` fixture."""

import os
import subprocess
import sys

import numpy as np
import pytest


def write_and_read_tensorstore(bucket: str) -> None:
    import tensorstore as ts

    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    spec = {'driver': 'zarr3', 'kvstore': f'{bucket}/array.zarr/'}
    store = ts.open(spec, create=True, dtype=array.dtype, shape=array.shape).result()
    store[...] = array
    np.testing.assert_array_equal(ts.open(spec).result().read().result(), array)


def write_and_read_client(bucket: str) -> None:
    from google.cloud import storage

    blob = storage.Client().bucket(bucket.removeprefix('gs://')).blob('folder/object')
    data = bytes(range(256)) + b'\r\n'
    blob.upload_from_string(data)
    assert blob.download_as_bytes() == data


def write_and_read_beam(bucket: str) -> None:
    from apache_beam.io.filesystems import FileSystems

    data = bytes(range(256)) * 1000
    with FileSystems.create(f'{bucket}/folder/beam.bin', compression_type='uncompressed') as file:
        file.write(data)
    with FileSystems.open(f'{bucket}/folder/beam.bin', compression_type='uncompressed') as file:
        assert file.read() == data
    assert len(FileSystems.match([f'{bucket}/folder/*'])[0].metadata_list) == 1


# Beam's own search for credentials takes half a minute: a test in which it happens is broken.
@pytest.mark.timeout(25)
@pytest.mark.parametrize(
    'use', [write_and_read_tensorstore, write_and_read_client, write_and_read_beam]
)
def test_client_uses_the_bucket(use, gcs_bucket):
    use(gcs_bucket)


def test_child_process_uses_the_bucket(gcs_bucket):
    code = f"""
import tensorstore as ts
store = ts.KvStore.open('{gcs_bucket}/').result()
store['from/child'] = b'seen'
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
    import tensorstore as ts

    assert ts.KvStore.open(f'{gcs_bucket}/').result()['from/child'] == b'seen'


def test_bucket_is_new_for_each_test(gcs_bucket):
    import tensorstore as ts

    assert ts.KvStore.open(f'{gcs_bucket}/').result().list().result() == []


def test_environment_is_restored():
    assert 'TENSORSTORE_GCS_HTTP_URL' not in os.environ
