"""The bucket of the tests does what a real one does, faults included."""

from __future__ import annotations

import time

import numpy as np
import pytest
import requests
import tensorstore as ts
from google.api_core import exceptions
from google.cloud import storage as cloud

from h01_beam.testing.faults import KINDS, Access, FaultPlan, Injector


@pytest.fixture
def blob(gcs_bucket):
    def make(key):
        return cloud.Client.create_anonymous_client().bucket(gcs_bucket[5:]).blob(key)

    return make


def test_conditions(blob):
    first = blob('a')
    first.upload_from_string(b'one', if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        blob('a').upload_from_string(b'two', if_generation_match=0)
    first.upload_from_string(b'two', if_generation_match=first.generation)
    with pytest.raises(exceptions.PreconditionFailed):
        blob('a').delete(if_generation_match=1)
    assert blob('a').download_as_bytes(if_generation_match=first.generation) == b'two'


def test_uploads_in_parts_have_conditions_too(blob):
    big = blob('big')
    big.chunk_size = 2**18
    big.upload_from_string(bytes(2**20), if_generation_match=0)
    assert blob('big').download_as_bytes() == bytes(2**20)
    with pytest.raises(exceptions.PreconditionFailed):
        big.upload_from_string(b'x', if_generation_match=0)


def test_tensorstore_writes_if_nothing_changed(gcs_bucket):
    store = ts.KvStore.open(f'{gcs_bucket}/').result()
    store.write('k', b'one').result()
    old = store.read('k').result()
    new = store.write('k', b'two', if_equal=old.stamp.generation).result()
    lost = store.write('k', b'three', if_equal=old.stamp.generation).result()
    assert store['k'] == b'two' and lost.generation != new.generation
    unchanged = store.read('k', if_not_equal=new.generation).result()
    assert unchanged.state == 'unspecified'


def test_parts_of_one_chunk_do_not_overwrite_each_other(gcs_bucket):
    """Read-modify-write by two writers, each with a cache of its own."""
    spec = {'driver': 'zarr3', 'kvstore': f'{gcs_bucket}/a/'}
    chunk = ts.ChunkLayout(chunk_shape=(64,))
    ts.open(spec, create=True, dtype=ts.uint8, shape=(64,), chunk_layout=chunk).result()
    writers = [ts.open(spec, context=ts.Context()).result() for _ in range(8)]
    pending = [w[8 * i : 8 * i + 8].write(np.uint8(i + 1)) for i, w in enumerate(writers)]
    for future in pending:
        future.result()
    np.testing.assert_array_equal(writers[0].read().result(), np.repeat(np.arange(1, 9), 8))


@pytest.mark.parametrize(
    ('asked', 'expected'),
    [('0-3', b'0123'), ('8-20', b'89'), ('-3', b'789'), ('4-', b'456789'), ('10-12', None)],
)
def test_ranges(bucket_emulator, gcs_bucket, blob, asked, expected):
    blob('digits').upload_from_string(b'0123456789')
    url = f'{bucket_emulator.address}/download/storage/v1/b/{gcs_bucket[5:]}/o/digits?alt=media'
    answer = requests.get(url, headers={'Range': f'bytes={asked}'}, timeout=10)
    assert answer.status_code == (206 if expected else 416)
    assert expected is None or answer.content == expected


def test_a_range_of_names_is_listed_and_deleted(gcs_bucket):
    store = ts.KvStore.open(f'{gcs_bucket}/').result()
    for name in ('a/1', 'a/2', 'b/1'):
        store[name] = b''
    assert store.list(ts.KvStore.KeyRange('a/', 'a/2')).result() == [b'a/1']
    store.delete_range(ts.KvStore.KeyRange('a/', 'a0')).result()
    assert store.list().result() == [b'b/1']


def test_pages_of_a_listing(gcs_bucket, blob):
    names = [f'{i:02d}' for i in range(12)]
    for name in names:
        blob(name).upload_from_string(b'')
    pages = cloud.Client.create_anonymous_client().list_blobs(gcs_bucket[5:], page_size=5).pages
    assert [[b.name for b in page] for page in pages] == [names[:5], names[5:10], names[10:]]


# ---------------------------------------------------------------- faults


def _meet(bucket_emulator, kind, **values):
    bucket_emulator.inject(FaultPlan(count=1, rate=1.0, kinds={kind: 1}, **values))


@pytest.fixture
def url(bucket_emulator, gcs_bucket, blob):
    blob('object').upload_from_string(b'x' * 1000)
    return f'{bucket_emulator.address}/storage/v1/b/{gcs_bucket[5:]}/o/object?alt=media'


@pytest.mark.parametrize(
    ('kind', 'status', 'header'),
    [
        ('busy', 429, None), ('busy_retry_after', 429, '7'), ('down', 503, None),
        ('down_retry_after', 503, '7'), ('forbidden', 403, None),
    ],
)  # fmt: skip
def test_refusals(bucket_emulator, url, kind, status, header):
    _meet(bucket_emulator, kind, retry_after_s=7)
    answer = requests.get(url, timeout=10)
    assert answer.status_code == status and answer.headers.get('Retry-After') == header
    assert answer.json()['error']['code'] == status
    assert requests.get(url, timeout=10).content == b'x' * 1000
    assert bucket_emulator.faults() == {kind: 1}


def test_a_request_that_hangs(bucket_emulator, url):
    _meet(bucket_emulator, 'hung', hung_s=60.0)
    with pytest.raises(requests.Timeout):
        requests.get(url, timeout=0.3)
    # Others do not wait for it.
    assert requests.get(url, timeout=30).ok


def test_a_read_that_is_cut(bucket_emulator, url):
    _meet(bucket_emulator, 'cut')
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url, timeout=10)


def test_a_slow_read(bucket_emulator, url):
    _meet(bucket_emulator, 'slow', slow_s=0.6)
    started = time.monotonic()
    assert requests.get(url, timeout=10).content == b'x' * 1000
    assert time.monotonic() - started > 0.5


def test_an_answer_that_is_lost(bucket_emulator, gcs_bucket, blob):
    """The object is there, though the writer was not told."""
    address = f'{bucket_emulator.address}/upload/storage/v1/b/{gcs_bucket[5:]}/o'
    _meet(bucket_emulator, 'lost')
    with pytest.raises(requests.ConnectionError):
        requests.post(f'{address}?uploadType=media&name=new', data=b'data', timeout=10)
    assert blob('new').download_as_bytes() == b'data'


def test_an_object_that_is_denied(bucket_emulator, gcs_bucket, blob):
    bucket_emulator.inject(FaultPlan(denied=(f'{gcs_bucket[5:]}/secret/*',)))
    with pytest.raises(exceptions.Forbidden, match='secret/a'):
        blob('secret/a').upload_from_string(b'x')
    blob('open/a').upload_from_string(b'x')


def test_a_bucket_that_is_full(bucket_emulator, blob):
    bucket_emulator.inject(FaultPlan(capacity_bytes=0))
    with pytest.raises(exceptions.Forbidden, match='quota'):
        blob('a').upload_from_string(b'x')
    bucket_emulator.inject(FaultPlan(capacity_bytes=10**12))
    blob('a').upload_from_string(b'x')


def test_a_seed_makes_the_same_faults_and_exactly_as_many():
    def faults(seed):
        injector = Injector(FaultPlan(seed=seed, count=100, rate=0.3))
        requests = [Access('b/k', reads=i % 2 == 0, write_bytes=i % 2) for i in range(2000)]
        return [injector.draw(request, 0) for request in requests], injector.counts()

    (first, counts), (again, _), (other, _) = faults(1), faults(1), faults(2)
    assert first == again != other
    assert sum(counts.values()) == 100 and set(counts) <= set(KINDS) and len(counts) >= 8
    kinds_of_writes = {kind for kind in first[1::2] if kind}
    assert not kinds_of_writes & {'cut', 'slow'} and 'full' not in first[::2]


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"kinds has 'earthquake'.*must be weights of busy"):
        FaultPlan(kinds={'earthquake': 1})
