"""The picture of a training: loss, and scores on held-out tissue."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT, SECOND = '#1c2330', '#5a6577', '#dde2ea', '#3d6fb4', '#c4622d'


def _is_scored(result: Mapping[str, Any] | None) -> bool:
    if result is None or result['objective'] is None:
        return False
    # Where nothing was found there is nothing to split or merge.
    return all(tissue['voi_split'] is not None for tissue in result['tissues'])


def draw_curves(curve: Sequence[Mapping[str, Any]]) -> bytes:
    """Draws a training's records (see `models.ffn.train`) as a PNG."""
    figure = Figure(figsize=(10.8, 3.4), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [record['steps'] for record in curve]
    left.plot(steps, [record['loss'] for record in curve], color=ACCENT)
    left.set_title('Loss on training tissue', loc='left', color=INK, fontsize=11)
    scored = [
        (record['steps'], record['validation'])
        for record in curve
        if _is_scored(record.get('validation'))
    ]
    for name, colour in (('voi_split', ACCENT), ('voi_merge', SECOND)):
        means = [
            sum(tissue[name] for tissue in result['tissues']) / len(result['tissues'])
            for _, result in scored
        ]
        label = name.replace('voi_', 'VOI ')
        right.plot([s for s, _ in scored], means, 'o-', color=colour, ms=3, label=label)
    right.plot(
        [s for s, _ in scored], [result['objective'] for _, result in scored], color=MUTED, ls=':',
        label='VOI sum, blanks included',
    )  # fmt: skip
    right.set_title('Bits lost on held-out tissue', loc='left', color=INK, fontsize=11)
    right.set_ylim(bottom=0)
    if scored:
        right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.set_xlabel('gradient steps', color=MUTED, fontsize=9)
        axes.tick_params(colors=MUTED, labelsize=9)
        axes.grid(color=LINE, lw=0.6)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()
