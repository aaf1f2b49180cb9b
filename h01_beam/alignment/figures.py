"""Pictures of the aligned volume, for the report."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from h01_beam import storage
from h01_beam.acquisition import figures as acquisition_figures
from h01_beam.alignment.account import describe_sections
from h01_beam.export.finished_run import FinishedRun

INK, ACCENT, SECOND, LINE = '#1c2330', '#3d6fb4', '#c4622d', '#dde2ea'


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
