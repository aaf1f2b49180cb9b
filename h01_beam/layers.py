"""Generations of a run as layers of files: which of several places holds a file.

    RUN_DIR/...                            the first generation
    RUN_DIR/generations/000001/...         the next: only what differs from those beneath
    RUN_DIR/generations/000001/layers.json {"beneath": [""]}: names of those, the nearest first

A path within a generation names what lies there or, failing that, what lies at the same place in
the layers beneath. Nothing beneath is ever written: a reader of an old generation keeps its bytes.
What is deleted, but lies beneath, is hidden by a tombstone in its place. `h01_beam.storage` reads
all small files so; for volumes see `h01_beam.layered`. Other paths cost nothing more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

FOLDER = 'generations'
RECORD = 'layers.json'
# In place of a file that was deleted; told from any other by its length first, then its bytes.
TOMBSTONE = b'h01_beam: deleted in this generation\n'

_PATH = re.compile(rf'(?P<root>.*)/{FOLDER}/(?P<name>\d{{6}})(?P<rest>/.*)?')
# What is beneath a generation never changes.
_beneath: dict[tuple[str, str], tuple[str, ...]] = {}


def name_of(path: str) -> str:
    """Name of the generation that a path lies in, such as '000001'; '' outside of all."""
    found = _PATH.fullmatch(path)
    return found['name'] if found else ''


def root_of(path: str) -> str:
    """The run directory of a path within a generation."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise ValueError(f'{path!r} does not lie in a generation of a run')
    return found['root']


def place(path: str, name: str) -> str:
    """The same place in another layer of the same run."""
    found = _PATH.fullmatch(path)
    if found is None:
        return path
    return folder(found['root'], name) + (found['rest'] or '')


def folder(run_dir: str, name: str) -> str:
    """Folder of a generation of a run; its own for ''."""
    return f'{run_dir}/{FOLDER}/{name}' if name else run_dir


def places(path: str, read: Callable[[str], bytes]) -> list[str]:
    """Where a file may lie, the first that holds it counts; its own place first.

    Args:
      path: of the file or folder.
      read: reads a file.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        return [path]
    return [path, *(place(path, name) for name in _names(found['root'], found['name'], read))]


def _names(root: str, name: str, read: Callable[[str], bytes]) -> tuple[str, ...]:
    key = root, name
    if key not in _beneath:
        try:
            record = json.loads(read(f'{folder(root, name)}/{RECORD}'))
        except FileNotFoundError:  # A folder that happens to have such a name.
            return ()
        _beneath[key] = tuple(record['beneath'])
    return _beneath[key]
