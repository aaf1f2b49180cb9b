"""Small files (manifests, markers, rows, reports) on a local disk or in a bucket.

Bulk arrays do not pass through here: they belong to `h01_beam.volume`. Paths are local
paths, `file://` or `gs://bucket/key` URLs. Writes are atomic on both: a reader sees the old
file, or the new one, never a part of it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from h01_beam import objects


def is_remote(path: str) -> bool:
    """Whether `path` names an object in a bucket."""
    return path.startswith('gs://')


def local_path(path: str) -> Path:
    """A local path, with an optional `file://` prefix taken off.

    Raises:
      ValueError: a URL of another scheme, which would make a folder of that name.
    """
    if '://' in path.removeprefix('file://'):
        raise ValueError(f'{path!r}: must be a local path or start with gs:// or file://')
    return Path(path.removeprefix('file://'))


def join(base: str, *parts: str) -> str:
    """Joins path parts with single slashes."""
    return '/'.join([base.rstrip('/'), *(part.strip('/') for part in parts)])


def read_bytes(path: str) -> bytes:
    """Reads a whole file.

    Raises:
      FileNotFoundError: if there is none.
    """
    if not is_remote(path):
        try:
            return local_path(path).read_bytes()
        except NotADirectoryError as error:  # Below a file there is nothing.
            raise FileNotFoundError(errno.ENOENT, 'no such file', path) from error
    return objects.read(path)


def size(path: str) -> int:
    """Length of a file in bytes.

    Raises:
      FileNotFoundError: if there is none.
    """
    if not is_remote(path):
        return local_path(path).stat().st_size
    return int(objects.metadata(path).size)


def version(path: str) -> str:
    """A text that changes whenever a file is replaced: its size and time, or its generation.

    Raises:
      FileNotFoundError: if there is none.
    """
    if not is_remote(path):
        try:
            stat = local_path(path).stat()
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, 'no such file', path) from error
        return f'{stat.st_size}-{stat.st_mtime_ns}'
    return str(objects.metadata(path).generation)


def written_at(path: str) -> float | None:
    """When a file was written, seconds since 1970; None if there is none."""
    try:
        if not is_remote(path):
            return local_path(path).stat().st_mtime
        return float(objects.metadata(path).updated.timestamp())
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_range(path: str, start: int, stop: int) -> bytes:
    """Reads the bytes `start <= i < stop` of a file, which must have them.

    Raises:
      FileNotFoundError: if there is none.
    """
    if start == stop:
        return b''
    if not is_remote(path):
        with local_path(path).open('rb') as file:
            file.seek(start)
            return file.read(stop - start)
    return objects.read(path, start, stop)


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file atomically, making parent folders as needed."""
    if is_remote(path):
        objects.write(path, data)
        return
    target = local_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f'.{target.name}.')
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
        # mkstemp makes files that only their owner reads; a result is like any other file.
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def exists(path: str) -> bool:
    """Whether a file is there."""
    if is_remote(path):
        return objects.exists(path)
    return local_path(path).exists()


def list_files(prefix: str, suffix: str = '', since: float = 0.0) -> Iterator[str]:
    """Paths of all files below a folder (any depth), sorted.

    Args:
      prefix: the folder; one that does not exist has no files.
      suffix: what their names end in.
      since: seconds since 1970; files that were written before are left out.
    """
    for path, written in list_times(prefix, suffix, timed=bool(since)):
        if not since or written >= since:
            yield path


def list_times(prefix: str, suffix: str = '', timed: bool = True) -> Iterator[tuple[str, float]]:
    """Yields path and time (seconds since 1970) of all files below a folder, sorted.

    One by one: ten million files are never in memory at once.

    Args:
      prefix: the folder; one that does not exist has no files.
      suffix: what their names end in.
      timed: whether times are asked for, which costs a call for each local file; else they are 0.
    """
    if is_remote(prefix):
        for blob in objects.Listing(prefix):
            if blob.name.endswith(suffix):
                yield f'gs://{blob.bucket.name}/{blob.name}', blob.updated.timestamp()
        return
    for path in _list_local(str(local_path(prefix)), suffix):
        yield path, os.stat(path).st_mtime if timed else 0.0


def list_folders(prefix: str) -> list[str]:
    """Names of the folders right below a folder, sorted; one that does not exist has none."""
    if is_remote(prefix):
        blobs = objects.Listing(prefix, delimiter='/')
        for _ in blobs:  # Folders are known once the pages have been read.
            pass
        return sorted(name.rstrip('/').rpartition('/')[2] for name in blobs.folders())
    try:
        return sorted(entry.name for entry in os.scandir(local_path(prefix)) if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _list_local(folder: str, suffix: str) -> Iterator[str]:
    try:
        entries = [(e.name + '/' * e.is_dir(), e.path) for e in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return
    # The order of whole paths, as a bucket lists them.
    for name, path in sorted(entries):
        if name.endswith('/'):
            yield from _list_local(path, suffix)
        # Names that start with a dot are writes in progress (see `write_bytes`).
        elif name.endswith(suffix) and not name.startswith('.'):
            yield path


def delete_folder(folder: str) -> None:
    """Deletes all files below a folder; one that does not exist has none.

    By names that were listed, one by one: TensorStore deletes by a range of names, which bucket
    emulators do not know and take for the whole bucket.
    """
    if not is_remote(folder):
        shutil.rmtree(local_path(folder), ignore_errors=True)
        return
    for path in list(list_files(folder)):
        delete(path)


def check_writable(what: str, folder: str) -> None:
    """Raises before any work starts when nothing can be written to `folder`, named `what`."""
    try:
        if not is_remote(folder):
            local_path(folder).mkdir(parents=True, exist_ok=True)
        write_bytes(join(folder, 'write_probe'), b'')
        delete(join(folder, 'write_probe'))
    except Exception as error:
        raise PermissionError(
            f'{what} is {folder!r}: cannot write there ({type(error).__name__}: {error}); '
            'choose a folder or bucket you may write to, or mend its permissions'
        ) from error


def delete(path: str) -> None:
    """Deletes a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            objects.delete(path)
        else:
            local_path(path).unlink()


@functools.cache
def _umask() -> int:
    # The only way to read the umask is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
