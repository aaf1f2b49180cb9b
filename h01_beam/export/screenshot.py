"""Pictures of web pages, and of Neuroglancer, from a Chromium without a screen.

Chromium's own `--screenshot` waits on a virtual clock that Neuroglancer's workers never see, so it
hangs; the viewer's own screenshots wait until every visible chunk is drawn.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from h01_beam.export.serve import Server
from h01_beam.export.state import PICTURE

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')


class NoBrowserError(FileNotFoundError):
    """There is no Chromium on this machine."""


def find_browser() -> str:
    """Path of Chromium or Chrome.

    Raises:
      NoBrowserError: there is none; the message says how to get one.
    """
    for name in BROWSERS:
        path = shutil.which(name)
        if path:
            return path
    raise NoBrowserError(
        f'no browser for screenshots: none of {", ".join(BROWSERS)} is in PATH; install one, for '
        'example with `apt-get install chromium`'
    )


@contextlib.contextmanager
def headless_browser(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs Chromium on a page until the context ends, with WebGL drawn by the processor."""
    with tempfile.TemporaryDirectory(
        prefix='h01_beam_browser_', ignore_cleanup_errors=True
    ) as profile:
        command = [
            find_browser(), '--headless=new', f'--user-data-dir={profile}',
            '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist',
            '--no-first-run', '--disable-background-networking', '--disable-component-update',
            '--disable-sync', '--disable-default-apps', '--disable-dev-shm-usage',
            '--remote-debugging-port=0', '--window-size=1600,1000',
        ]  # fmt: skip
        if os.geteuid() == 0:
            # Chromium refuses to sandbox for root; the page is our own.
            command.append('--no-sandbox')
        process = subprocess.Popen(
            [*command, url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)


def take_screenshot(
    server: Server, size: tuple[int, int] = PICTURE, timeout_s: float = 120
) -> bytes:
    """Renders what a server shows, headless.

    Args:
      server: shows some layers.
      size: width and height in pixels.
      timeout_s: bound on the whole.

    Returns:
      PNG.

    Raises:
      NoBrowserError: see `find_browser`.
      TimeoutError: not every visible chunk came in time.
    """
    replies: list[Any] = []
    done = threading.Event()
    progress = 'the page did not connect'

    def receive(reply: Any) -> None:
        replies.append(reply)
        done.set()

    def watch(statistics: Any) -> None:
        nonlocal progress
        total = statistics.total
        progress = f'{total.visible_chunks_gpu_memory} of {total.visible_chunks_total} chunks came'

    with server.viewer.config_state.txn() as config:
        config.show_ui_controls = False
        config.show_panel_borders = False
        config.viewer_size = list(size)
    server.viewer.async_screenshot(receive, statistics_callback=watch)
    with headless_browser(server.url) as browser:
        if not done.wait(timeout_s):
            state = 'the browser ended' if browser.poll() is not None else progress
            raise TimeoutError(f'no screenshot after {timeout_s:g} s: {state}')
    image: bytes = replies[0].screenshot.image
    return image


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a browser with its helpers, which share its process group."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
