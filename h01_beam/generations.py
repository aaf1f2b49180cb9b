"""States of a run over time: each reprocessing is a generation, which readers see as a whole.

    RUN_DIR/current.json                which generation is the present one; none: the first
    RUN_DIR/generations/000001/         see `h01_beam.layers`
    RUN_DIR/history/000001.json, ...    what was done, one file for each event

A generation is begun, filled, and committed by one atomic write of `current.json`, its last step.
A reader that resolved the run before keeps the generation that it has. All of this changes under
`h01_beam.lock.Lock` alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from h01_beam import config as config_lib
from h01_beam import layers, storage

CURRENT, HISTORY = 'current.json', 'history'
# Files that one in a layer above does not replace: what is beneath a layer, and the metadata of a
# volume, without which the chunks that are still seen cannot be read.
_NOT_HIDDEN = (layers.RECORD, 'info', 'zarr.json')


def current(run_dir: str) -> str:
    """Folder of the present generation; the run directory itself for the first."""
    return layers.folder(storage.absolute(run_dir), _current_name(storage.absolute(run_dir)))


def resolve(path: str) -> str:
    """A path within a run directory (of a volume, say) as it is in the present generation.

    Args:
      path: any path or URI; one that is not within a run that has generations stays as it is.
    """
    if layers.name_of(path):
        return path
    run_dir, slash, _ = path.rpartition('/volumes/')
    # A run may lie within another, such as RUN_DIR/baseline/evaluation.
    while slash and run_dir.count('/') > 2:
        if _current_name(run_dir):
            return current(run_dir) + path[len(run_dir) :]
        run_dir = run_dir.rpartition('/')[0]
    return path


def exist(run_dir: str) -> bool:
    """Whether a run has generations beside the first, present or not."""
    return bool(storage.list_folders(storage.join(run_dir, layers.FOLDER)))


def attempt(config: Any, inputs: Mapping[str, str]) -> str:
    """A hash of what a run is of: configuration and inputs."""
    return config_lib.fingerprint([config_lib.as_dict(config), sorted(inputs.items())])


def begin(run_dir: str, of: str | None = None) -> str:
    """Folder of a generation to fill, over the present one.

    The one that was begun and not committed, if it is of the same configuration and inputs; else a
    new one: an engine may still be at work on the old one, of which the launcher has died.

    Args:
      run_dir: the run.
      of: their hash, see `attempt`; None: a new generation in any case.
    """
    run_dir = storage.absolute(run_dir)
    pending = unfinished(run_dir)
    if pending and of is not None and _may_be_of(pending, of):
        return pending
    parent = _current_name(run_dir)
    # No name is used twice, though folders are pruned: readers know what lies beneath by name.
    taken = {event['to'] for event in history(run_dir)} - {''}
    taken |= set(storage.list_folders(storage.join(run_dir, layers.FOLDER)))
    name = f'{1 + max(map(int, taken), default=0):06d}'
    beneath = [parent, *_beneath(run_dir, parent)]
    folder = layers.folder(run_dir, name)
    storage.write_bytes(
        storage.join(folder, layers.RECORD), json.dumps({'beneath': beneath}).encode()
    )
    return folder


def _may_be_of(folder: str, of: str) -> bool:
    """Whether a generation is of a configuration and inputs, or has no manifest of its own yet."""
    path = storage.join(folder, 'run.json')
    if not storage.exists(path) or storage.find(path) != path:
        return True
    return bool(json.loads(storage.read_bytes(path)).get('attempt') == of)


def unfinished(run_dir: str) -> str | None:
    """Folder of the generation that was begun over the present one and not committed, if any."""
    run_dir = storage.absolute(run_dir)
    parent = _current_name(run_dir)
    dropped = {event['from'] for event in history(run_dir) if event['event'] == 'rollback'}
    for name in reversed(storage.list_folders(storage.join(run_dir, layers.FOLDER))):
        if name not in dropped and _beneath(run_dir, name)[:1] == [parent]:
            return layers.folder(run_dir, name)
    return None


def commit(folder: str, told: dict[str, Any]) -> None:
    """Makes a generation the present one; `told` goes into the history."""
    run_dir, name = layers.root_of(folder), layers.name_of(folder)
    parent = _current_name(run_dir)
    _record(run_dir, {'event': 'reprocess', 'from': parent, 'to': name, **told})
    _point_at(run_dir, name)


def roll_back(run_dir: str) -> str:
    """Makes the generation before the present one the present one; returns its folder.

    Raises:
      ValueError: there is none, or it has been pruned.
    """
    run_dir = storage.absolute(run_dir)
    name = _current_name(run_dir)
    if not name:
        raise ValueError(f'run_dir is {run_dir!r}: has no earlier generation to go back to')
    parent = _beneath(run_dir, name)[0]
    if parent in _pruned(run_dir):
        raise ValueError(
            f'run_dir is {run_dir!r}: the generation before {name} has been pruned; keep more with '
            '--keep_generations'
        )
    _record(run_dir, {'event': 'rollback', 'from': name, 'to': parent})
    _point_at(run_dir, parent)
    return layers.folder(run_dir, parent)


def history(run_dir: str) -> list[dict[str, Any]]:
    """What was done, oldest first: dictionaries with `event`, `from`, `to`, `when` and more."""
    files = storage.list_files(storage.join(run_dir, HISTORY), '.json')
    return [json.loads(storage.read_bytes(path)) for path in files]


def prune(run_dir: str, keep: int) -> int:
    """Deletes what none of the last generations needs; returns the number of files.

    Those that were rolled back or abandoned go as a whole; of the layers beneath the oldest that is
    kept, what a layer above it holds anew. (A chunk that became all zeros has no file above it;
    what it was stays.) Takes time by what changed, not by the size of the run.

    Args:
      run_dir: the run.
      keep: how many generations stay readable, the present one included.

    Raises:
      ValueError: fewer than one.
    """
    if keep < 1:
        raise ValueError(f'keep_generations is {keep}: must be at least 1, the present one')
    run_dir = storage.absolute(run_dir)
    name = _current_name(run_dir)
    chain = [name, *_beneath(run_dir, name)]
    kept, pending = chain[:keep], unfinished(run_dir)
    deleted = 0
    for other in storage.list_folders(storage.join(run_dir, layers.FOLDER)):
        folder = layers.folder(run_dir, other)
        if other not in chain and folder != pending:
            deleted += sum(1 for _ in storage.own_files(folder))
            storage.delete_folder(folder)
    unreadable = [old for old in chain[keep:] if old not in _pruned(run_dir)]
    if unreadable:
        # Told first: from now on nobody goes back to them.
        _record(run_dir, {'event': 'prune', 'from': unreadable[-1], 'to': kept[-1],
                          'pruned': unreadable})  # fmt: skip
    # What an interrupted pruning left is found again.
    for depth in range(len(kept) - 1, len(chain) - 1):
        deleted += _drop_hidden(run_dir, chain[depth], chain[depth + 1 :])
    return deleted


def _drop_hidden(run_dir: str, upper: str, beneath: list[str]) -> int:
    """Deletes files of layers that one above them holds anew."""
    deleted = 0
    folder = layers.folder(run_dir, upper)
    for path in storage.own_files(folder):
        if path.rpartition('/')[2] in _NOT_HIDDEN:
            continue
        for lower in beneath:
            deleted += storage.delete_own(layers.place(path, lower))
    return deleted


def _current_name(run_dir: str) -> str:
    try:
        return str(json.loads(storage.read_bytes(storage.join(run_dir, CURRENT)))['generation'])
    except FileNotFoundError:
        return ''


def _point_at(run_dir: str, name: str) -> None:
    storage.write_bytes(storage.join(run_dir, CURRENT), json.dumps({'generation': name}).encode())


def _beneath(run_dir: str, name: str) -> list[str]:
    if not name:
        return []
    path = storage.join(layers.folder(run_dir, name), layers.RECORD)
    try:
        return list(json.loads(storage.read_bytes(path))['beneath'])
    except FileNotFoundError:  # Begun, and killed before its first file was written.
        return []


def _pruned(run_dir: str) -> set[str]:
    return {name for event in history(run_dir) for name in event.get('pruned', ())}


def _record(run_dir: str, event: dict[str, Any]) -> None:
    files = list(storage.list_files(storage.join(run_dir, HISTORY), '.json'))
    path = storage.join(run_dir, HISTORY, f'{len(files) + 1:06d}.json')
    storage.write_bytes(path, json.dumps({**event, 'when': time.time()}, indent=1).encode())
