"""Objects in a bucket, and patience with it: the only user of google-cloud-storage.

Every access is tried until it succeeds or `DEADLINE_S` has passed: again after an answer that says
so (408, 429, 5xx), none in time, or half of one; with growing, random delays, and not before the
time that a `Retry-After` asks for. All of them may be done twice: they read, or write or delete
one whole object. (TensorStore has its own requests and the same patience: `h01_beam.volume`.)
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

# Least delay before an access is tried again, the most that it grows to, and when it is given up.
RETRY_DELAY_S = float(os.environ.get('H01_BEAM_RETRY_DELAY_S', '1'))
MOST_DELAY_S = 32.0
DEADLINE_S = 600.0
# How long an answer, or the next bytes of one, may take.
TIMEOUT_S = float(os.environ.get('H01_BEAM_REQUEST_TIMEOUT_S', '60'))
RETRIED_CODES = frozenset({408, 429, 500, 502, 503, 504})
GRANT = (
    'grant the account that runs this the role Storage Object User on the bucket (or mend the '
    "object's own permissions), then give the same command again: finished blocks are kept"
)
MAKE_ROOM = (
    'the disk is full: free space, have the quota of the bucket raised, or choose another '
    '--run_dir; then give the same command again: finished blocks are kept'
)

_retries: list[int] = [0]
_counting = threading.Lock()


def retries() -> int:
    """How often this process has tried an access again so far."""
    return _retries[0]


def read(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """All of an object, or the bytes `start <= i < stop` of it."""
    limits = {} if stop is None else {'start': start, 'end': stop - 1}
    with _errors(path):
        data: bytes = _blob(path).download_as_bytes(**limits, **_patience())
    return data


def write(path: str, data: bytes) -> None:
    """Writes an object, in place of the one that is there."""
    with _errors(path):
        _blob(path).upload_from_string(
            data, content_type='application/octet-stream', checksum='auto', **_patience()
        )


def write_if(path: str, data: bytes, generation: int) -> int | None:
    """Writes an object if the one that is there has this generation, 0 for none.

    Returns:
      its generation from now on; None if another was there.
    """
    from google.api_core import exceptions

    blob = _blob(path)
    try:
        with _errors(path):
            blob.upload_from_string(
                data, content_type='application/octet-stream', checksum='auto',
                if_generation_match=generation, **_patience(),
            )  # fmt: skip
    except OSError as error:
        if not isinstance(error.__cause__, exceptions.PreconditionFailed):
            raise
        # The answer to an earlier request, which did write it, may have been lost.
        return int(metadata(path).generation) if read(path) == data else None
    return int(blob.generation)


def exists(path: str) -> bool:
    """Whether an object is there."""
    with _errors(path):
        return bool(_blob(path).exists(**_patience()))


def delete(path: str) -> None:
    """Deletes an object.

    Raises:
      FileNotFoundError: there is none; perhaps as the answer to a first request was lost.
    """
    with _errors(path):
        _blob(path).delete(**_patience())


def delete_if(path: str, generation: int) -> bool:
    """Deletes an object if it has this generation; returns whether it did."""
    from google.api_core import exceptions

    try:
        with _errors(path):
            _blob(path).delete(if_generation_match=generation, **_patience())
    except FileNotFoundError:
        return False
    except OSError as error:
        if not isinstance(error.__cause__, exceptions.PreconditionFailed):
            raise
        return False
    return True


def metadata(path: str) -> Any:
    """A blob with all that the bucket tells of it, for example `size` and `generation`."""
    with _errors(path):
        blob = _blob(path)
        blob.reload(**_patience())
    return blob


class Listing:
    """Iterates over the objects below a folder, at any depth, sorted by name, page by page."""

    def __init__(self, path: str, delimiter: str | None = None):
        self._path = path
        bucket, key = _split(path)
        folder = key.rstrip('/') + '/' if key else None
        with _errors(path):
            self._blobs = _client().list_blobs(
                bucket, prefix=folder, delimiter=delimiter, **_patience()
            )

    def __iter__(self) -> Iterator[Any]:
        with _errors(self._path):
            yield from self._blobs

    def folders(self) -> set[str]:
        """With a delimiter, after iteration: the folders right below."""
        return set(self._blobs.prefixes)


def way_out(error: BaseException) -> str:
    """What to do about an error of storage that comes from elsewhere, TensorStore or a disk."""
    text = str(error)
    if GRANT in text or MAKE_ROOM in text:
        return ''
    if is_full(error):
        return MAKE_ROOM
    if isinstance(error, PermissionError) or 'PERMISSION_DENIED' in text or ' 403' in text:
        return GRANT
    return ''


def is_full(error: BaseException) -> bool:
    """Whether there is no room left, so that nothing else can be written either."""
    text = str(error)
    signs = ('No space left', 'ENOSPC', 'RESOURCE_EXHAUSTED', 'quotaExceeded', MAKE_ROOM)
    return any(sign in text for sign in signs)


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    """Turns the client's errors into the OSErrors that a local disk would give."""
    from google.api_core import exceptions
    from google.auth import exceptions as auth_exceptions

    try:
        yield
    except exceptions.NotFound:
        raise FileNotFoundError(errno.ENOENT, 'no such object or bucket', path) from None
    except exceptions.Forbidden as error:
        if 'quota' in str(error).lower():
            raise OSError(errno.ENOSPC, f'{_reason(error)}; {MAKE_ROOM}', path) from error
        raise PermissionError(errno.EACCES, f'{_reason(error)}; {GRANT}', path) from error
    except (exceptions.GoogleAPIError, auth_exceptions.GoogleAuthError, OSError) as error:
        raise OSError(f'{path!r} cannot be reached ({type(error).__name__}: {error})') from error


def _reason(error: Any) -> str:
    """What the bucket said: the client puts more around it."""
    try:
        return str(error.response.json()['error']['message'])
    except (AttributeError, KeyError, TypeError, ValueError):
        return str(error.message)


def _patience() -> dict[str, Any]:
    return {'timeout': TIMEOUT_S, 'retry': _retry()}


@functools.cache
def _retry() -> Any:
    from google.api_core.retry import Retry

    return Retry(
        predicate=_may_pass,
        initial=RETRY_DELAY_S,
        maximum=MOST_DELAY_S,
        timeout=DEADLINE_S,
        on_error=_before_retry,
    )


def _may_pass(error: Exception) -> bool:
    from google.api_core import exceptions
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    if isinstance(error, exceptions.GoogleAPICallError):
        return error.code in RETRIED_CODES
    if isinstance(error, InvalidResponse):
        return error.response.status_code in RETRIED_CODES
    # All errors of the connection, time-outs too, are OSErrors; half an answer is corrupt.
    return isinstance(error, OSError | DataCorruption)


def _before_retry(error: Exception) -> None:
    with _counting:
        _retries[0] += 1
    answer = getattr(error, 'response', None)
    asked = answer.headers.get('Retry-After', '') if answer is not None else ''
    if asked.isdigit():  # It may also be a date, which nothing here sends.
        time.sleep(min(int(asked), MOST_DELAY_S))


@functools.cache
def _client() -> Any:
    # Imported late: local runs need no cloud libraries in memory.
    from google.cloud import storage

    if os.environ.get('STORAGE_EMULATOR_HOST'):
        return storage.Client.create_anonymous_client()
    return storage.Client()


def _blob(path: str) -> Any:
    bucket, key = _split(path)
    return _client().bucket(bucket).blob(key)


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix('gs://').partition('/')
    return bucket, key
