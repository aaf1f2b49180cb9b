"""What became of every section, and pictures of the aligned volume, for the report."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from h01_beam import storage
from h01_beam.acquisition import figures as acquisition_figures
from h01_beam.alignment.elastic.damage import join_parts
from h01_beam.export.finished_run import FinishedRun

INK, ACCENT, SECOND, LINE = '#1c2330', '#3d6fb4', '#c4622d', '#dde2ea'


def describe_sections(run_path: str) -> list[dict[str, Any]]:
    """What became of every section of a run: one dictionary each, for report.json.

    Args:
      run_path: the run directory.

    Returns:
      section: its number; state: 'missing' (no usable tile), 'placed', 'loose' (ties to other
      sections, but not to most), 'unmatched'; reason; tiles and how many are good, suspect, bad or
      missing; cut_off: share of the tissue beyond the aligned frame; loose_tiles and outlier_pairs
      of stitching; folds and tears, how many; seam_rms_px; matches and their misfit;
      flow_known: share of the nodes; jitter_px: RMS by which the mesh and the flow disagree.
    """
    run = FinishedRun(run_path)
    names = ('sections', 'solved', 'seam_quality', 'affines', 'links', 'misplaced', 'frame')
    checked, solved, seams, affines, links, misplaced, frame = (run.all_rows(n) for n in names)
    better = dict(zip(misplaced['section'].tolist(), misplaced['better'].tolist(), strict=True))
    rows = []
    for position, number in enumerate(checked['section'].tolist()):
        usable = checked['state'][position] != 'missing'
        row: dict[str, Any] = {
            'section': number,
            'state': str(affines['state'][position]) if usable else 'missing',
            'reason': str(checked['reason'][position]),
        }
        if position in better:
            place = int(checked['section'][better[position]])
            row['reason'] = f'{row["reason"]} it looks as if it belonged at {place}'.strip()
        row['cut_off'] = None
        for place in np.flatnonzero(frame['section'] == position).tolist():
            row['cut_off'] = round(float(frame['cut_off'][place]), 4)
            if frame['cut_off'][place]:
                reach = int(frame['margin'][place])
                told = (
                    f'{row["cut_off"]:.2%} of its tissue is cut off: align.margin must be {reach}'
                )
                row['reason'] = f'{row["reason"]} {told}'.strip()
        row |= _damage_of(run, position)
        row['reason'] = f'{row["reason"]} {row.pop("damage")}'.strip()
        for name in ('tiles', 'good', 'suspect', 'bad', 'missing'):
            row[name] = int(checked[name][position])
        mine = solved['section'] == number
        for name in ('loose_tiles', 'lost_pairs', 'outlier_pairs', 'tiles_beyond_margin'):
            row[name] = int(solved[name][mine].sum())
        seam = seams['section'] == number
        points = int(seams['points'][seam].sum())
        row['seam_rms_px'] = (
            round(math.sqrt(seams['squares'][seam].sum() / points), 3) if points else None
        )
        row['matches'] = int(affines['matches'][position])
        link = (links['first'] == position) | (links['second'] == position)
        nodes, known, compared, squares = (
            float(links[name][link].sum()) for name in ('nodes', 'known', 'compared', 'squares')
        )
        row['flow_known'] = round(known / nodes, 3) if nodes else None
        row['jitter_px'] = round(math.sqrt(squares / compared), 3) if compared else None
        rows.append(row)
    return rows


def _damage_of(run: FinishedRun, position: int) -> dict[str, Any]:
    """How many folds and tears a section has, and how to say so."""
    if run.manifest['config']['align']['discontinuities'] is None:
        return {'folds': None, 'tears': None, 'damage': ''}
    config = run.manifest['config']
    pitch = config['align']['flow']['stride'] * config['stitch']['downsample']
    lines = join_parts(run.all_rows('damage'), position, 3 * pitch)
    micrometres = config['tiles']['pixel_nm'] / 1000
    told = [f'a {kind} of {extent * micrometres:.1f} um' for kind, extent in lines]
    kinds = [kind for kind, _ in lines]
    return {
        'folds': kinds.count('fold'), 'tears': kinds.count('tear'), 'damage': ', '.join(told),
    }  # fmt: skip


def figures(run_path: str) -> dict[str, str]:
    """Draws before and after, quality by section, and the worst tiles.

    Args:
      run_path: the run directory.

    Returns:
      caption by path of the PNG file.
    """
    run = FinishedRun(run_path)
    drawn = {
        run.figure('aligned.png'): (
            _draw_before_after(run),
            'Before and after: a section, and a cut across all sections (as stitched; aligned).',
        ),
        run.figure('sections.png'): (
            _draw_quality(describe_sections(run_path)),
            'Sections: seams of stitching, and what is left between neighbours after the mesh.',
        ),
    }
    for path, (png, _) in drawn.items():
        storage.write_bytes(path, png)
    captions = {path: caption for path, (_, caption) in drawn.items()}
    return captions | acquisition_figures.figures(run_path)


def _draw_before_after(run: FinishedRun) -> bytes:
    figure = Figure(figsize=(10.8, 6.2), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, width_ratios=(1, 1.6))
    grey: dict[str, Any] = {'cmap': 'gray', 'vmin': 0, 'vmax': 255}
    for row, (name, title) in zip(
        axes, (('montage', 'stitched'), ('image', 'aligned')), strict=True
    ):
        planes, size = run.through(name)
        row[0].imshow(planes.yx, **grey)
        row[0].set_title(f'xy, {title}', loc='left', fontsize=10)
        row[1].imshow(planes.zx, aspect=size[0] / size[2], interpolation='nearest', **grey)
        row[1].set_title(f'xz, {title}', loc='left', fontsize=10)
    for one in axes.ravel():
        one.set_axis_off()
    return _png(figure)


def _draw_quality(sections: list[dict[str, Any]]) -> bytes:
    figure = Figure(figsize=(10.8, 3.4), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    numbers = [s['section'] for s in sections]
    for name, label, colour in (
        ('seam_rms_px', 'seams, RMS px', ACCENT),
        ('jitter_px', 'neighbours, RMS px', SECOND),
    ):
        values = np.array([np.nan if s[name] is None else s[name] for s in sections])
        axes.plot(numbers, values, marker='o', ms=4, color=colour, label=label)
    lost = [s['section'] for s in sections if s['state'] != 'placed']
    for number in lost:
        axes.axvspan(number - 0.5, number + 0.5, color=LINE, zorder=0)
    axes.set_xlabel('section (shaded: not placed)')
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(color=LINE, lw=0.6)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()
