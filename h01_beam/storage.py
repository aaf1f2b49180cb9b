"""Small files (manifests, markers, rows, reports) on a local disk or in a bucket.

Bulk arrays do not pass through here: they belong to `h01_beam.volume`. Paths are local
paths, `file://` or `gs://bucket/key` URLs. Writes are atomic on both: a reader sees the old
file, or the new one, never a part of it. In a generation of a run, what is not there is read from
the layers beneath (`h01_beam.layers`).
"""

from __future__ import annotations

import errno
import functools
import heapq
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from h01_beam import layers, objects


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


def absolute(path: str) -> str:
    """The path of a folder from anywhere, without a slash at its end."""
    if is_remote(path):
        return path.rstrip('/')
    return os.path.abspath(local_path(path))


def join(base: str, *parts: str) -> str:
    """Joins path parts with single slashes."""
    return '/'.join([base.rstrip('/'), *(part.strip('/') for part in parts)])


def places(path: str) -> list[str]:
    """Where a file or folder may lie: the path itself, then those beneath (`h01_beam.layers`)."""
    return layers.places(path, _read)


def find(path: str) -> str:
    """Where a file lies: the path itself, or one beneath.

    Raises:
      FileNotFoundError: if there is none.
    """
    *above, last = places(path)
    if not above:
        return path
    for place in above:
        if _exists(place):
            if _is_tombstone(place):
                break
            return place
    else:
        if _exists(last):
            return last
    raise FileNotFoundError(errno.ENOENT, 'no such file', path)


def read_bytes(path: str) -> bytes:
    """Reads a whole file.

    Raises:
      FileNotFoundError: if there is none.
    """
    *above, last = places(path)
    for place in above:
        try:
            data = _read(place)
        except FileNotFoundError:
            continue
        if data == layers.TOMBSTONE:
            raise FileNotFoundError(errno.ENOENT, 'deleted in this generation', path)
        return data
    return _read(last)


def size(path: str) -> int:
    """Length of a file in bytes.

    Raises:
      FileNotFoundError: if there is none.
    """
    return _size(find(path))


def version(path: str) -> str:
    """A text that changes whenever a file is replaced: its size and time, or its generation.

    Raises:
      FileNotFoundError: if there is none.
    """
    path = find(path)
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
        path = find(path)
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
    path = find(path)
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
    try:
        return _exists(find(path))
    except FileNotFoundError:
        return False


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
    layered = places(prefix)
    if len(layered) == 1:
        for path, written, _ in _list(prefix, suffix, timed):
            yield path, written
        return
    # By name, and of one name the uppermost first.
    merged = heapq.merge(*(_named(depth, folder, suffix) for depth, folder in enumerate(layered)))
    previous = None
    for name, depth, path, written, length in merged:
        top = depth < len(layered) - 1
        hidden = top and length == len(layers.TOMBSTONE) and _is_tombstone(path)
        if name != previous and not hidden:
            yield _as_listed(prefix) + name, written
        previous = name


def _named(depth: int, folder: str, suffix: str) -> Iterator[tuple[str, int, str, float, int]]:
    """Files of one of several layers: name below the folder, which layer, path, time, length."""
    for path, written, length in _list(folder, suffix, timed=True):
        yield path[len(_as_listed(folder)) :], depth, path, written, length


def list_folders(prefix: str) -> list[str]:
    """Names of the folders right below a folder, sorted; one that does not exist has none."""
    return sorted({name for place in places(prefix) for name in _list_folders(place)})


def _list(prefix: str, suffix: str, timed: bool) -> Iterator[tuple[str, float, int]]:
    """Path, time and length of the files of one layer; the last two 0 if not timed."""
    if is_remote(prefix):
        for blob in objects.Listing(prefix):
            if blob.name.endswith(suffix):
                path = f'gs://{blob.bucket.name}/{blob.name}'
                yield path, blob.updated.timestamp(), int(blob.size)
        return
    for path in _list_local(_as_listed(prefix), suffix):
        stat = os.stat(path) if timed else None
        yield (path, stat.st_mtime, stat.st_size) if stat else (path, 0.0, 0)


def _as_listed(prefix: str) -> str:
    """How the paths below a folder begin when they are listed."""
    return prefix.rstrip('/') if is_remote(prefix) else str(local_path(prefix))


def _list_folders(prefix: str) -> list[str]:
    if is_remote(prefix):
        blobs = objects.Listing(prefix, delimiter='/')
        for _ in blobs:  # Folders are known once the pages have been read.
            pass
        return [name.rstrip('/').rpartition('/')[2] for name in blobs.folders()]
    try:
        return [entry.name for entry in os.scandir(local_path(prefix)) if entry.is_dir()]
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

    Of a generation, only its own: those beneath are a volume's chunks, which are not read by name
    (`h01_beam.layered`). By names that were listed, one by one: TensorStore deletes by a range of
    names, which bucket emulators do not know and take for the whole bucket.
    """
    if not is_remote(folder):
        shutil.rmtree(local_path(folder), ignore_errors=True)
        return
    for path in list(own_files(folder)):
        delete_own(path)


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
    """Deletes a file, if it is there; one that lies beneath is hidden."""
    _, *beneath = places(path)
    if any(map(_exists, beneath)):
        write_bytes(path, layers.TOMBSTONE)
        return
    delete_own(path)


def own_files(folder: str) -> Iterator[str]:
    """Paths of all files below a folder, without those of layers beneath."""
    return (path for path, _, _ in _list(folder, '', timed=False))


def delete_own(path: str) -> bool:
    """Deletes a file whatever lies beneath; returns whether it was there."""
    try:
        if is_remote(path):
            objects.delete(path)
        else:
            local_path(path).unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _read(path: str) -> bytes:
    if is_remote(path):
        return objects.read(path)
    try:
        return local_path(path).read_bytes()
    except NotADirectoryError as error:  # Below a file there is nothing.
        raise FileNotFoundError(errno.ENOENT, 'no such file', path) from error


def _exists(path: str) -> bool:
    return objects.exists(path) if is_remote(path) else local_path(path).exists()


def _size(path: str) -> int:
    if is_remote(path):
        return int(objects.metadata(path).size)
    return local_path(path).stat().st_size


def _is_tombstone(path: str) -> bool:
    return _size(path) == len(layers.TOMBSTONE) and _read(path) == layers.TOMBSTONE


@functools.cache
def _umask() -> int:
    # The only way to read the umask is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
