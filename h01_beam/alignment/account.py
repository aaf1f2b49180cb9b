"""What became of every section: its state, why, and how good stitching and alignment are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from h01_beam.alignment.elastic.damage import join_parts
from h01_beam.export.finished_run import FinishedRun
from h01_beam.tables import Columns

_COUNTS = ('tiles', 'good', 'suspect', 'bad', 'missing')
_TABLES = ('sections', 'solved', 'seam_quality', 'affines', 'links', 'misplaced', 'frame')


def describe_sections(run_path: str) -> list[dict[str, Any]]:
    """What became of every section of a run: one dictionary each, for report.json.

    Args:
      run_path: the run directory.

    Returns:
      section: its number; state: 'missing' (no usable tile), 'placed', 'loose' (ties to other
      sections, but not to most), 'unmatched'; reason; tiles and how many are good, suspect, bad or
      missing; double_cut: whether it is at least 1.5 times as thick as most; cut_off: share of the
      tissue beyond the aligned frame; loose_tiles and outlier_pairs of stitching; folds and tears,
      how many; seam_rms_px; matches and their misfit;
      flow_known: share of the nodes; jitter_px: RMS by which the mesh and the flow disagree.
      Where sections were made alike, levels_moved: grey levels by which its quantiles are moved, in
      the mean; None if it shows too little.
    """
    run = FinishedRun(run_path)
    matched = (run.manifest['config'].get('contrast') or {}).get('match') is not None
    names = (*_TABLES, 'levels_moved') if matched else _TABLES
    tables = {name: run.all_rows(name) for name in names}
    count = len(tables['sections']['section'])
    return [_describe(run, tables, position) for position in range(count)]


def _describe(run: FinishedRun, tables: dict[str, Columns], position: int) -> dict[str, Any]:
    checked, affines = tables['sections'], tables['affines']
    usable = checked['state'][position] != 'missing'
    parts = [
        {name: int(checked[name][position]) for name in ('tiles', 'good', 'suspect', 'bad')}
        | {
            'missing': int(checked['missing'][position]),
            'reason': str(checked['reason'][position]),
        },
        _thickness(tables, position),
        _order(tables, position),
        _cut_off(tables['frame'], position),
        _damage(run, position),
        _stitched(tables, position),
        {'matches': int(affines['matches'][position])},
        _aligned(tables['links'], position),
        _levels_moved(tables, position),
    ]
    row: dict[str, Any] = {
        'section': int(checked['section'][position]),
        'state': str(affines['state'][position]) if usable else 'missing',
        'reason': '; '.join(reason for part in parts if (reason := part.pop('reason', ''))),
    }
    for part in parts:
        row |= part
    return row


def _thickness(tables: dict[str, Columns], position: int) -> dict[str, Any]:
    thickness = tables['sections']['thickness_nm']
    doubled = bool(thickness[position] >= 1.5 * np.median(thickness))
    told = f'a double cut: it is {float(thickness[position]):.0f} nm thick'
    return {'double_cut': doubled, 'reason': told if doubled else ''}


def _order(tables: dict[str, Columns], position: int) -> dict[str, Any]:
    misplaced = tables['misplaced']
    numbers = tables['sections']['section']
    better = [int(numbers[b]) for b in misplaced['better'][misplaced['section'] == position]]
    return {'reason': f'it looks as if it belonged at {better[-1]}' if better else ''}


def _cut_off(frame: Columns, position: int) -> dict[str, Any]:
    places = np.flatnonzero(frame['section'] == position).tolist()
    if not places:
        return {'cut_off': None}
    share, reach = float(frame['cut_off'][places[-1]]), int(frame['margin'][places[-1]])
    told = f'{share:.2%} of its tissue is cut off: align.margin must be {reach}'
    return {'cut_off': round(share, 4), 'reason': told if share else ''}


def _damage(run: FinishedRun, position: int) -> dict[str, Any]:
    config = run.manifest['config']
    if config['align']['lines'] is None:
        return {'folds': None, 'tears': None}
    pitch = config['align']['flow']['stride'] * config['stitch']['downsample']
    lines = join_parts(run.all_rows('damage'), position, 3 * pitch)
    micrometres = config['tiles']['pixel_nm'] / 1000
    told = [f'a {kind} of {extent * micrometres:.1f} um' for kind, extent in lines]
    kinds = [kind for kind, _ in lines]
    return {
        'folds': kinds.count('fold'), 'tears': kinds.count('tear'), 'reason': ', '.join(told),
    }  # fmt: skip


def _stitched(tables: dict[str, Columns], position: int) -> dict[str, Any]:
    solved, seams = tables['solved'], tables['seam_quality']
    number = tables['sections']['section'][position]
    mine, seam = solved['section'] == number, seams['section'] == number
    names = ('loose_tiles', 'lost_pairs', 'outlier_pairs', 'tiles_beyond_margin')
    row: dict[str, Any] = {name: int(solved[name][mine].sum()) for name in names}
    points = int(seams['points'][seam].sum())
    squares = float(seams['squares'][seam].sum())
    row['seam_rms_px'] = round(math.sqrt(squares / points), 3) if points else None
    told = []
    if row['loose_tiles']:
        total = int(tables['sections']['tiles'][position])
        told.append(f'{row["loose_tiles"]} of {total} tiles hang on no other')
    if row['tiles_beyond_margin']:
        told.append(
            f'{row["tiles_beyond_margin"]} tiles lie farther than stitch.margin from where the '
            'stage has them and are left out: raise it'
        )
    return {**row, 'reason': '; '.join(told)}


def _aligned(links: Columns, position: int) -> dict[str, Any]:
    mine = (links['first'] == position) | (links['second'] == position)
    nodes, known, compared, squares = (
        float(links[name][mine].sum()) for name in ('nodes', 'known', 'compared', 'squares')
    )
    return {
        'flow_known': round(known / nodes, 3) if nodes else None,
        'jitter_px': round(math.sqrt(squares / compared), 3) if compared else None,
    }


def _levels_moved(tables: dict[str, Columns], position: int) -> dict[str, Any]:
    if 'levels_moved' not in tables:
        return {}
    moved = tables['levels_moved']
    # Rows are by z. A section lies at its number; if it fills more, these show the same.
    own = moved['moved'][moved['section'] == tables['sections']['section'][position]].tolist()
    return {'levels_moved': round(own[0], 2) if own else None}
