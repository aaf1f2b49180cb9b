"""A Neuroglancer on loopback, with the volumes it shows on the same port.

One port is all that a developer on a remote machine has to forward. Other users of a machine,
and pages open in the same browser, reach loopback as well: every path holds a random token.
Files are only read, only below the volumes that are served, and folders are never listed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import neuroglancer
import neuroglancer.server
from absl import logging

from h01_beam.export.files import Files

RANGE = re.compile(r'bytes=(\d*)-(\d*)')


class Server:
    """A running Neuroglancer.

    Attributes:
      url: of the viewer's page.
      viewer: the Neuroglancer package's viewer; its state follows the page and leads it.
    """

    def __init__(self, viewer: neuroglancer.Viewer):
        self.viewer = viewer
        self.url: str = viewer.get_viewer_url()
        self._files: dict[str, Files] = {}
        app = neuroglancer.server.global_server.app
        pattern = rf'/volumes/{viewer.token}/([^/]+)/(.+)'
        app.add_handlers('.*', [(pattern, _FileHandler, {'files': self._files})])

    def add(self, name: str, files: Files) -> str:
        """Serves a volume; returns its Neuroglancer source URL."""
        self._files[name] = files
        base = neuroglancer.server.get_server_url()
        return f'precomputed://{base}/volumes/{self.viewer.token}/{name}'

    def show(self, state: Mapping[str, Any]) -> None:
        """Sets what the viewer shows; see `h01_beam.export.state`."""
        self.viewer.set_state(neuroglancer.ViewerState(json.loads(json.dumps(state))))


@contextlib.contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    """Runs a server on 127.0.0.1 until the context ends.

    Args:
      port: 0 takes any free one.

    Raises:
      OSError: the port is in use; the message says what to do.
    """
    neuroglancer.stop()
    neuroglancer.set_server_bind_address('127.0.0.1', port)
    try:
        viewer = neuroglancer.Viewer(allow_credentials=False)
    except OSError as error:
        raise OSError(
            f'port is {port}: cannot listen there ({error}); choose another --port, or 0 for any'
        ) from error
    try:
        yield Server(viewer)
    finally:
        neuroglancer.stop()


class _FileHandler(neuroglancer.server.BaseRequestHandler):
    """GET and HEAD of one file, whole or one range of it."""

    def initialize(self, files: Mapping[str, Files]) -> None:
        self._served = files

    def set_default_headers(self) -> None:
        # Pages of other Neuroglancer deployments may read what the user gave them the URL of.
        self.set_header('Access-Control-Allow-Origin', '*')
        self.set_header('Access-Control-Allow-Headers', 'Range')
        self.set_header('Access-Control-Expose-Headers', 'Content-Range, Content-Length')
        self.set_header('Access-Control-Allow-Private-Network', 'true')
        self.set_header('Accept-Ranges', 'bytes')
        self.set_header('Content-Type', 'application/octet-stream')
        # A run may still be writing.
        self.set_header('Cache-Control', 'no-cache')

    def options(self, name: str, key: str) -> None:
        self.set_status(204)

    async def head(self, name: str, key: str) -> None:
        await self._answer(name, key, with_body=False)

    async def get(self, name: str, key: str) -> None:
        await self._answer(name, key, with_body=True)

    async def _answer(self, name: str, key: str, with_body: bool) -> None:
        if name not in self._served:
            self.send_error(404)
            return
        files = self._served[name]
        try:
            # Off the event loop: a bucket or a compressed chunk takes its time.
            size = await asyncio.to_thread(files.size, key)
            start, stop = parse_range(self.request.headers.get('Range'), size)
            if (start, stop) != (0, size):
                self.set_status(206)
                self.set_header('Content-Range', f'bytes {start}-{stop - 1}/{size}')
            if with_body:
                self.write(await asyncio.to_thread(files.read, key, start, stop))
            else:
                self.set_header('Content-Length', str(stop - start))
        except FileNotFoundError:
            self.send_error(404)
        except IndexError:
            self.set_status(416)
            self.set_header('Content-Range', f'bytes */{size}')
        except (ValueError, OSError) as error:
            logging.error('cannot read %s of %s: %s', key, name, error)
            self.send_error(500)

    def log_exception(self, *args: Any) -> None:
        """Readers that go away while they are served are no errors."""
        logging.debug('request failed', exc_info=args)


def parse_range(header: str | None, size: int) -> tuple[int, int]:
    """Bytes `start <= i < stop` that a Range header asks for; all without a usable one.

    Raises:
      IndexError: the range lies outside of the file.
    """
    match = RANGE.fullmatch(header or '')
    if not match or not (match[1] or match[2]):
        return 0, size
    if not match[1]:
        start, stop = max(0, size - int(match[2])), size
    else:
        start = int(match[1])
        stop = min(size, int(match[2]) + 1) if match[2] else size
    if start >= stop:
        raise IndexError(f'range {header!r} lies outside of {size} bytes')
    return start, stop
