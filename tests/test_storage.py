from __future__ import annotations

import os
import stat
import threading

import pytest

from h01_beam import storage


@pytest.fixture(params=['local', 'bucket'])
def folder(request, tmp_path):
    """A folder that does not exist yet, on the local disk and in a bucket."""
    if request.param == 'local':
        return str(tmp_path / 'folder')
    return request.getfixturevalue('gcs_bucket') + '/folder'


def test_what_is_written_is_read(folder):
    path = storage.join(folder, 'a', 'b.json')
    assert not storage.exists(path)
    storage.write_bytes(path, b'one')
    storage.write_bytes(path, b'two')
    assert storage.exists(path) and storage.read_bytes(path) == b'two'


def test_a_missing_file_is_named(folder):
    path = storage.join(folder, 'none.json')
    with pytest.raises(FileNotFoundError, match='none.json'):
        storage.read_bytes(path)


def test_files_are_listed_in_the_order_of_their_paths(folder):
    names = ['b.json', 'a/z.json', 'a.json', 'ab.json', 'a/b/c.json', 'a-b/c.json', 'a/x.txt']
    for name in names:
        storage.write_bytes(storage.join(folder, name), b'')
    storage.write_bytes(storage.join(folder + '_other', 'd.json'), b'')
    found = [path[len(folder) + 1 :] for path in storage.list_files(folder, '.json')]
    assert found == sorted(name for name in names if name.endswith('.json'))
    assert list(storage.list_files(folder)) == list(storage.list_files(folder + '/'))
    assert list(storage.list_files(storage.join(folder, 'nowhere'))) == []


def test_a_whole_bucket_is_listed(gcs_bucket):
    storage.write_bytes(gcs_bucket + '/a/b', b'')
    assert list(storage.list_files(gcs_bucket)) == [gcs_bucket + '/a/b']


def test_writable_folders_are_left_clean(folder):
    storage.check_writable('run_dir', folder)
    assert list(storage.list_files(folder)) == []


def test_a_bucket_that_is_not_there(gcs_bucket):
    with pytest.raises(PermissionError, match=r'run_dir is .*cannot write there.*choose a folder'):
        storage.check_writable('run_dir', 'gs://no-such-bucket-anywhere/run')
    with pytest.raises(FileNotFoundError):
        storage.read_bytes('gs://no-such-bucket-anywhere/x')


def test_a_folder_below_a_file_is_not_writable(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(PermissionError, match=r'run_dir is .*cannot write there'):
        storage.check_writable('run_dir', str(tmp_path / 'file' / 'run'))


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = str(tmp_path / 'file')
    contents = [bytes([i]) * 100_000 for i in range(2)]
    storage.write_bytes(path, contents[0])
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for content in contents:
                storage.write_bytes(path, content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert all(storage.read_bytes(path) in contents for _ in range(300))
    finally:
        stop.set()
        writer.join()
    assert os.listdir(tmp_path) == ['file']


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='No space left'):
        storage.write_bytes(str(tmp_path / 'file'), b'data')
    assert os.listdir(tmp_path) == []


def test_writes_in_progress_are_not_listed(tmp_path):
    (tmp_path / '.marker.json.x7').write_text('')
    (tmp_path / 'marker.json').write_text('')
    assert list(storage.list_files(str(tmp_path))) == [str(tmp_path / 'marker.json')]


def test_files_have_the_usual_permissions(tmp_path):
    storage.write_bytes(str(tmp_path / 'ours'), b'')
    (tmp_path / 'plain').write_text('')
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ('ours', 'plain')}
    assert len(modes) == 1


def test_file_urls_are_local(tmp_path):
    storage.write_bytes(f'file://{tmp_path}/a', b'x')
    assert (tmp_path / 'a').read_bytes() == b'x'


def test_other_schemes_are_refused():
    with pytest.raises(ValueError, match='s3://bucket/a.*must be a local path or start with gs://'):
        storage.read_bytes('s3://bucket/a')


def test_join():
    assert storage.join('gs://b/', '/a/', 'c') == 'gs://b/a/c'
    assert storage.join('/a', 'b') == '/a/b'


def test_below_a_file_there_is_nothing(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileNotFoundError, match='no such file'):
        storage.read_bytes(f'{tmp_path}/file/run/run.json')
    assert not storage.exists(f'{tmp_path}/file/run/run.json')
    assert not list(storage.list_files(f'{tmp_path}/file/run'))
