r"""A bucket emulator on loopback, in a process of its own, with faults on purpose.

It is gcp-storage-emulator (`pip install gcp-storage-emulator`) with what it lacks beside a real
bucket, and TensorStore needs: conditional reads and writes, the generation of what is read, ranges
that count from the end, listings that start or end at a name, several requests at once.

    python -m h01_beam.testing.bucket_server --port 9023 --bucket demo

prints the environment that makes TensorStore, google-cloud-storage and Beam use it. `/_faults` is
its own: PUT a `FaultPlan` as JSON, GET the counts by kind, POST /_faults/KIND to count one more.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

from h01_beam import config as config_lib
from h01_beam.testing.bucket import CONTROL, Emulator
from h01_beam.testing.faults import Access, FaultPlan, Injector, refusal

OBJECT = re.compile(r'(?:/(?:download|upload))?(?:/storage/v1)?/b/([^/]+)/o(?:/(.+))?')
# Where a slow read is cut.
SLOW_PARTS = 5


class _MemoryStorage(Storage):
    """Objects in memory; deleted ones are gone."""

    def __init__(self) -> None:
        super().__init__(use_memory_fs=True)
        self.used_bytes = 0

    def _write_config_to_file(self) -> None:
        """Nothing: to write down all objects at each request takes longer the more there are."""

    def _bucket_soft_delete_retention_seconds(self, bucket_name: str) -> int:
        return 0

    def create_file(
        self, bucket_name: str, file_name: str, content: bytes, file_obj: Any, file_id: Any = None
    ) -> None:
        before = self.object_size(bucket_name, file_name)
        super().create_file(bucket_name, file_name, content, file_obj, file_id)
        self.used_bytes += len(content) - before

    def delete_file(self, bucket_name: str, file_name: str) -> None:
        before = self.object_size(bucket_name, file_name)
        super().delete_file(bucket_name, file_name)
        self.used_bytes -= before

    def find(self, bucket_name: str, file_name: str) -> Mapping[str, Any] | None:
        """Metadata of an object, or None if it is not there."""
        found: Mapping[str, Any] | None = self.objects.get(bucket_name, {}).get(file_name)
        return found

    def object_size(self, bucket_name: str, file_name: str) -> int:
        found = self.find(bucket_name, file_name)
        return int(found['size']) if found else 0


@dataclasses.dataclass(frozen=True)
class _Target:
    """What a request is about: `key` is None for a listing, and '' before a name is known."""

    bucket: str
    key: str | None
    query: Mapping[str, str]
    media: bool

    @classmethod
    def of(cls, path: str, body: bytes) -> _Target | None:
        """Read from a request; None if it is not about objects."""
        url = urlsplit(path)
        found = OBJECT.fullmatch(url.path)
        if not found:
            return None
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        key = unquote(found[2]) if found[2] else query.get('name')
        if key is None and url.path.startswith('/upload') and 'upload_id' not in query:
            # The metadata are all of the body, or its first part.
            name = re.search(rb'"name"\s*:\s*("(?:[^"\\]|\\.)*")', body)
            key = json.loads(name[1]) if name else None
        elif key is None and 'upload_id' in query:
            # The emulator's own ids: BUCKET:KEY:TIME.
            key = query['upload_id'].split(':', 1)[1].rsplit(':', 3)[0]
        media = query.get('alt') == 'media' or url.path.startswith('/download')
        return cls(unquote(found[1]), key, query, media)


class _Handler(emulator.RequestHandler):
    """One connection: mends requests and answers, and makes faults of them."""

    protocol_version = 'HTTP/1.1'
    rfile: io.BufferedIOBase
    wfile: io.BufferedIOBase

    def __init__(
        self, storage: _MemoryStorage, injector: Injector, lock: threading.Lock, *args: Any
    ):
        self.injector, self.lock = injector, lock
        super().__init__(storage, *args)

    def handle(self) -> None:
        # A client that gave up, or was killed, is nothing to report.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:  # noqa: N802
        self._handle('GET')

    def do_POST(self) -> None:  # noqa: N802
        self._handle('POST')

    def do_PUT(self) -> None:  # noqa: N802
        self._handle('PUT')

    def do_PATCH(self) -> None:  # noqa: N802
        self._handle('PATCH')

    def do_DELETE(self) -> None:  # noqa: N802
        self._handle('DELETE')

    def _handle(self, method: str) -> None:
        body = emulator._read_raw_data(self) or b''
        if self.path.startswith(CONTROL):
            self._control(method, body)
            return
        target = _Target.of(self.path, body)
        kind, access = self._draw(method, target, body)
        plan = self.injector.plan
        if kind == 'hung':
            time.sleep(plan.hung_s)
            self.close_connection = True
        elif kind in (None, 'cut', 'slow', 'lost'):
            self._send(self._answer(method, target, body), kind, plan)
        else:
            self._refuse(*refusal(kind, access, plan))

    def _draw(self, method: str, target: _Target | None, body: bytes) -> tuple[str | None, Access]:
        name = f'{target.bucket}/{target.key}' if target and target.key else ''
        access = Access(
            name=name,
            reads=method == 'GET' and target is not None and target.media,
            write_bytes=len(body) if method in ('POST', 'PUT') and name else 0,
        )
        return self.injector.draw(access, self.storage.used_bytes), access

    def _control(self, method: str, body: bytes) -> None:
        if method == 'PUT':
            self.injector.set_plan(config_lib.from_dict(FaultPlan, json.loads(body)))
        elif method == 'POST':
            self.injector.note(self.path.removeprefix(CONTROL + '/'))
        content = json.dumps(self.injector.counts()).encode()
        self._refuse(HTTPStatus.OK, {'Content-Type': 'application/json'}, content)

    # ------------------------------------------------------------- what the emulator lacks

    def _answer(self, method: str, target: _Target | None, body: bytes) -> bytes:
        """The bytes of the emulator's answer."""
        with self.lock, self._captured() as answer:
            if target is None or target.key is None:
                if target is not None and method == 'GET':
                    self._list(target)
                else:
                    self._route(method, body)
                return answer.getvalue()
            found = self.storage.find(target.bucket, target.key)
            status = _unmet(method, target, found)
            if status is not None:
                self._refuse(status, {}, b'')
            elif method == 'GET' and target.media and found is not None:
                self._read(target, found)
            else:
                self._route(method, body)
            return answer.getvalue()

    @contextlib.contextmanager
    def _captured(self) -> Iterator[io.BytesIO]:
        """Catches what is sent, so that a slow client does not hold up the others."""
        socket_file, answer = self.wfile, io.BytesIO()
        self.wfile = answer
        try:
            yield answer
        finally:
            self.wfile = socket_file

    def _route(self, method: str, body: bytes) -> None:
        socket_file, self.rfile = self.rfile, io.BytesIO(body)
        # It came in chunks, perhaps; here it is in one.
        del self.headers['Transfer-Encoding'], self.headers['Content-Length']
        self.headers['Content-Length'] = str(len(body))
        try:
            emulator.Router(self).handle(method)
        finally:
            self.rfile = socket_file

    def _read(self, target: _Target, found: Mapping[str, Any]) -> None:
        """All of an object or a range of it, with its generation."""
        data = self.storage.get_file(target.bucket, target.key)
        headers = {
            'Content-Type': found.get('contentType') or 'application/octet-stream',
            'X-Goog-Generation': found['generation'],
            'X-Goog-Metageneration': found['metageneration'],
            'X-Goog-Stored-Content-Length': str(len(data)),
        }
        asked = re.fullmatch(r'\s*bytes=(\d*)-(\d*)\s*', self.headers.get('Range', ''))
        if not asked or not any(asked.groups()):
            headers['X-Goog-Hash'] = f'crc32c={found["crc32c"]},md5={found["md5Hash"]}'
            self._refuse(HTTPStatus.OK, headers, data)
            return
        first, last = asked.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= stop:
            headers = {'Content-Range': f'bytes */{len(data)}'}
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers, b'')
            return
        headers['Content-Range'] = f'bytes {start}-{stop - 1}/{len(data)}'
        self._refuse(HTTPStatus.PARTIAL_CONTENT, headers, data[start:stop])

    def _list(self, target: _Target) -> None:
        """A page of the names in a range; page tokens are names to start at."""
        if target.bucket not in self.storage.buckets:
            self._refuse(HTTPStatus.NOT_FOUND, {}, b'')
            return
        query = target.query
        items, prefixes = self.storage.get_file_list(
            target.bucket, query.get('prefix'), query.get('delimiter'), query.get('matchGlob')
        )
        start = max(query.get('startOffset', ''), query.get('pageToken', ''))
        end, most = query.get('endOffset'), int(query.get('maxResults', 1000))
        names = [item['name'] for item in items]
        chosen = [i for i, name in enumerate(names) if name >= start and not (end and name >= end)]
        page: dict[str, Any] = {
            'kind': 'storage#objects',
            'items': [items[i] for i in chosen[:most]],
            'prefixes': [p for p in prefixes if not query.get('pageToken')],
        }
        if len(chosen) > most:
            page['nextPageToken'] = names[chosen[most]]
        headers = {'Content-Type': 'application/json'}
        self._refuse(HTTPStatus.OK, headers, json.dumps(page).encode())

    # ------------------------------------------------------------- answers

    def _refuse(self, status: HTTPStatus, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(b'' if status == HTTPStatus.NOT_MODIFIED else body)

    def _send(self, answer: bytes, kind: str | None, plan: FaultPlan) -> None:
        if kind is None:
            self.wfile.write(answer)
            return
        if kind == 'slow':
            part = -(-len(answer) // SLOW_PARTS)
            for start in range(0, len(answer), part):
                time.sleep(plan.slow_s / SLOW_PARTS)
                self.wfile.write(answer[start : start + part])
            return
        if kind == 'cut':
            head = answer.index(b'\r\n\r\n') + 4
            self.wfile.write(answer[: head + (len(answer) - head) // 2])
        self.close_connection = True


def _unmet(method: str, target: _Target, found: Mapping[str, Any] | None) -> HTTPStatus | None:
    """The status of an answer to a request whose conditions are not met; None if they are.

    Of an upload in parts, the conditions are those of its first request.
    """
    generation = int(found['generation']) if found else 0
    query = target.query
    asked = query.get('generation')
    if asked is not None and int(asked) != generation:
        return HTTPStatus.NOT_FOUND
    wanted = query.get('ifGenerationMatch')
    if wanted is not None and int(wanted) != generation:
        return HTTPStatus.PRECONDITION_FAILED
    known = query.get('ifGenerationNotMatch')
    if known is not None and int(known) == generation:
        return HTTPStatus.NOT_MODIFIED if method == 'GET' else HTTPStatus.PRECONDITION_FAILED
    metageneration = query.get('ifMetagenerationMatch')
    if metageneration is not None and found and found['metageneration'] != metageneration:
        return HTTPStatus.PRECONDITION_FAILED
    return None


def _read_data(request_handler: Any, query: Mapping[str, Any]) -> Any:
    """As the emulator does, but media are bytes, even where there are none or they are JSON."""
    if query.get('uploadType') == ['media']:
        return emulator._read_raw_data(request_handler) or b''
    return _EMULATOR_READ_DATA(request_handler, query)


_EMULATOR_READ_DATA = emulator._read_data


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve(port: int, bucket: str | None, child: bool) -> None:
    """Serves until the process is ended; prints its address first."""
    emulator._read_data = _read_data
    # It logs an error for every object that is not there.
    logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)
    logging.getLogger('api').setLevel(logging.CRITICAL)
    storage = _MemoryStorage()
    if bucket:
        buckets.create_bucket(bucket, storage)
    handler = functools.partial(_Handler, storage, Injector(), threading.Lock())
    with _Server(('127.0.0.1', port), handler) as server:
        running = Emulator(f'http://127.0.0.1:{server.server_port}')
        print(running.address, flush=True)
        if child:
            threading.Thread(target=_exit_with_parent, daemon=True).start()
        else:
            folder = Path(os.environ.get('TMPDIR', '/tmp'))
            for name, value in running.environment(folder).items():
                print(f'export {name}={value}', flush=True)
        server.serve_forever()


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's documentation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--port', type=int, default=9023, help='0: any that is free')
    parser.add_argument('--bucket', help='made at the start')
    parser.add_argument('--child', action='store_true', help='ends with its standard input')
    args = parser.parse_args(argv)
    with contextlib.suppress(KeyboardInterrupt):
        serve(args.port, args.bucket, args.child)


if __name__ == '__main__':
    main()
