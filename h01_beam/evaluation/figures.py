"""The picture of the worst errors: image, truth and segmentation side by side.

Left the objects that are split the most, right the segments that merge the most, each in the
section where its error is the largest. One colour is one label within a panel; whatever is not
part of the error stays grey.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from h01_beam.evaluation.errors import View

Rgb = NDArray[np.float64]

# Paul Tol's 'bright' scheme, told apart by colour-blind readers; grey is kept for context.
_COLOURS = ('#4477AA', '#EE6677', '#CCBB44', '#228833', '#AA3377', '#66CCEE')
_KEY_LABELS = 4
_KEY_NOUN_INCHES = 0.7
_OTHER_PARTS = '#DDAA88'
_INK = '#222222'
_MUTED = '#6b6b6b'
_PANEL_INCHES = 1.9
_LEGEND = (
    'Each error in the section where it is the largest. Black line: border of the object (left) or '
    'segment (right). Within it one colour is one label; no colour: no label. White lines: borders '
    'of other labels.'
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorCrop:
    """One error, cut out of its section.

    Attributes:
      kind: 'split', with a truth object as target, or 'merge', with a segment as target.
      view: where the error is, and the labels that share it.
      bits: its contribution to the score.
      parts: labels that share the whole target, not only this section of it.
      largest_fraction: of the target's voxels, what its largest part holds.
      segmentation, truth: yx labels of the crop, 0 = none.
      image: yx uint8, or None.
      voxel_size_nm: (y, x); None draws no scale bar.
      min_fraction: what `parts` counts.
    """

    kind: Literal['split', 'merge']
    view: View
    bits: float
    parts: int
    largest_fraction: float
    segmentation: NDArray[Any]
    truth: NDArray[Any]
    image: NDArray[np.uint8] | None
    voxel_size_nm: tuple[float, float] | None
    min_fraction: float = 0.01

    @property
    def focus(self) -> NDArray[np.bool_]:
        """Where the target is."""
        return (self.truth if self.kind == 'split' else self.segmentation) == self.view.target

    @property
    def divided(self) -> NDArray[Any]:
        """The labels that the target has several of."""
        return self.segmentation if self.kind == 'split' else self.truth


def draw_errors(
    splits: Sequence[ErrorCrop], merges: Sequence[ErrorCrop], title: str, subtitle: str
) -> bytes:
    """Returns the picture as PNG.

    Args:
      splits: the worst first; may be empty.
      merges: the worst first; may be empty.
      title: one line.
      subtitle: one line, for example the scores.
    """
    rows = max(len(splits), len(merges), 1)
    row_inches = _PANEL_INCHES + 0.52
    head_inches, foot_inches = 0.92, 0.34
    width, height = 6 * _PANEL_INCHES + 1.2, rows * row_inches + head_inches + foot_inches
    figure = Figure(figsize=(width, height), dpi=200, facecolor='white')
    FigureCanvasAgg(figure)
    figure.text(0.25 / width, 1 - 0.30 / height, title, size=14, weight='bold', color=_INK)
    figure.text(0.25 / width, 1 - 0.54 / height, subtitle, size=9, color=_MUTED)
    for kind, crops, left in (('split', splits, 0.25), ('merge', merges, width / 2 + 0.15)):
        _draw_heading(figure, kind, left, len(crops))
        for row, crop in enumerate(crops):
            bottom = height - head_inches - (row + 1) * row_inches + 0.06
            _draw_row(figure, crop, row + 1, left, bottom)
    figure.text(0.25 / width, 0.12 / height, _LEGEND, size=7.5, color=_MUTED)
    out = io.BytesIO()
    figure.savefig(out, format='png', metadata={'Software': 'h01_beam'})
    return out.getvalue()


def _draw_heading(figure: Figure, kind: str, left: float, count: int) -> None:
    width, height = figure.get_size_inches()
    text = {
        'split': 'Worst splits: one object of the truth, several segments',
        'merge': 'Worst merges: one segment, several objects of the truth',
    }[kind]
    text += '' if count else ' (none)'
    y = 1 - 0.84 / height
    figure.text(left / width, y, text, size=10, weight='bold', color=_INK)


def _draw_row(figure: Figure, crop: ErrorCrop, number: int, left: float, bottom: float) -> None:
    width, height = figure.get_size_inches()
    focus = crop.focus
    grey = _grey(crop)
    whole = _paint(grey, focus, np.where(focus, 1, 0), [_COLOURS[0]])
    parts = _paint(grey, focus, _rank(crop.divided, crop.view.parts), _COLOURS)
    panels = {'image': grey, 'truth': whole, 'segmentation': parts}
    if crop.kind == 'merge':
        panels = {'image': grey, 'truth': parts, 'segmentation': whole}
    for column, (name, rgb) in enumerate(panels.items()):
        box = (left + column * (_PANEL_INCHES + 0.05), bottom, _PANEL_INCHES, _PANEL_INCHES)
        axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        axes.imshow(rgb, interpolation='nearest')
        labels = {'image': None, 'truth': crop.truth, 'segmentation': crop.segmentation}[name]
        _draw_outlines(axes, labels, focus)
        _finish_panel(axes, name)
        if column == 0 and crop.voxel_size_nm:
            _draw_scale_bar(axes, crop.voxel_size_nm[1], rgb.shape)
    _draw_caption(figure, crop, number, left, bottom + _PANEL_INCHES)


def _draw_caption(figure: Figure, crop: ErrorCrop, number: int, left: float, bottom: float) -> None:
    width, height = figure.get_size_inches()
    noun, others = ('object', 'segments') if crop.kind == 'split' else ('segment', 'objects')
    z, y, x = crop.view.centre
    head = f'{number}   {noun} {crop.view.target}   {crop.bits:.4f} bits'
    tail = (
        f'{crop.parts} {others} of {crop.min_fraction:.0%} or more, the largest '
        f'{crop.largest_fraction:.0%}   at z {z}, y {y}, x {x}'
    )
    title = figure.text(
        left / width, (bottom + 0.21) / height, head, size=8.5, weight='bold', color=_INK
    )
    figure.text(left / width, (bottom + 0.06) / height, tail, size=7.5, color=_MUTED)
    room = (title.get_window_extent().x1 / figure.dpi, left + 3 * _PANEL_INCHES + 0.1)
    _draw_key(figure, crop, others, room, bottom + 0.21)


def _draw_key(
    figure: Figure, crop: ErrorCrop, others: str, room: tuple[float, float], bottom: float
) -> None:
    """Writes the ids of the largest parts in this section, each in its colour, as far as they fit.

    `room` is left and right of the free space, in inches.
    """
    left, right = room
    width, height = figure.get_size_inches()
    divided = crop.divided[crop.focus]
    seen = [part for part in crop.view.parts[: len(_COLOURS)] if np.any(divided == part)]
    style: dict[str, Any] = {'size': 8, 'weight': 'bold', 'ha': 'right'}
    for part in reversed(seen[:_KEY_LABELS]):
        colour = _COLOURS[crop.view.parts.index(part)]
        text = figure.text(right / width, bottom / height, str(part), color=colour, **style)
        box = text.get_window_extent()
        if right - box.width / figure.dpi - _KEY_NOUN_INCHES < left:
            text.remove()
            continue
        right -= box.width / figure.dpi + 0.1
    style['weight'] = 'normal'
    figure.text(right / width, bottom / height, others, color=_MUTED, **style)


def _grey(crop: ErrorCrop) -> Rgb:
    """Returns the image stretched to its own range as RGB, or an even light ground."""
    if crop.image is None:
        return np.full((*crop.truth.shape, 3), 0.9)
    low, high = np.percentile(crop.image, (0.5, 99.5))
    stretched = (crop.image.astype(np.float64) - low) / max(high - low, 1.0)
    return np.repeat(np.clip(stretched, 0, 1)[:, :, None], 3, axis=2)


def _rank(labels: NDArray[Any], parts: Sequence[int]) -> NDArray[np.int64]:
    """Returns 1, 2, ... for the parts in their order, 0 for unlabelled, -1 for any other."""
    rank = np.where(labels == 0, 0, -1)
    for place, part in enumerate(parts[: len(_COLOURS)]):
        rank[labels == part] = place + 1
    return rank


def _paint(
    grey: Rgb, focus: NDArray[np.bool_], rank: NDArray[np.int64], colours: Sequence[str]
) -> Rgb:
    """Returns the ground with the focus tinted by rank; unlabelled voxels stay bare."""
    rgb = 0.62 * grey + 0.38  # What is not the error recedes.
    rgb[focus] = grey[focus]
    for place, colour in [*enumerate(colours, 1), (-1, _OTHER_PARTS)]:
        here = focus & (rank == place)
        rgb[here] = 0.42 * grey[here] + 0.58 * _from_hex(colour)
    return rgb


def _from_hex(colour: str) -> Rgb:
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def _draw_outlines(axes: Axes, labels: NDArray[Any] | None, focus: NDArray[np.bool_]) -> None:
    """Draws the borders between labels finely, and that of the focus boldly."""
    if labels is not None:
        axes.plot(*_borders(labels), color=(1, 1, 1, 0.55), linewidth=0.35)
    axes.plot(*_borders(focus), color=(0.05, 0.05, 0.05, 0.95), linewidth=0.9)


def _borders(labels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns x and y of the pixel edges between different labels, parted by NaN."""
    y, x = np.nonzero(labels[:, 1:] != labels[:, :-1])
    upright = (
        np.stack([x + 0.5, x + 0.5, np.full(len(x), np.nan)], 1),
        np.stack([y - 0.5, y + 0.5, np.full(len(y), np.nan)], 1),
    )
    y, x = np.nonzero(labels[1:] != labels[:-1])
    level = (
        np.stack([x - 0.5, x + 0.5, np.full(len(x), np.nan)], 1),
        np.stack([y + 0.5, y + 0.5, np.full(len(y), np.nan)], 1),
    )
    return (
        np.concatenate([upright[0], level[0]]).ravel(),
        np.concatenate([upright[1], level[1]]).ravel(),
    )


def _finish_panel(axes: Axes, name: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
        spine.set_color(_MUTED)
    axes.set_autoscale_on(False)
    axes.text(
        0.03,
        0.965,
        name,
        transform=axes.transAxes,
        size=7,
        va='top',
        color=_INK,
        bbox={'boxstyle': 'round,pad=0.22', 'facecolor': 'white', 'alpha': 0.82, 'linewidth': 0},
    )


def _draw_scale_bar(axes: Axes, voxel_nm: float, shape: tuple[int, ...]) -> None:
    """Draws a bar of a round length, about a quarter of the panel."""
    target_nm = shape[1] * voxel_nm / 3.5
    power = 10 ** np.floor(np.log10(target_nm))
    bar_nm = max(step * power for step in (1, 2, 5) if step * power <= target_nm)
    text = f'{bar_nm / 1000:g} µm' if bar_nm >= 1000 else f'{bar_nm:g} nm'
    right, base = shape[1] * 0.955 - 0.5, shape[0] * 0.94 - 0.5
    left = right - bar_nm / voxel_nm
    for colour, weight in (('white', 3.4), ('black', 1.8)):
        axes.plot([left, right], [base, base], color=colour, linewidth=weight, zorder=5)
    axes.text(
        (left + right) / 2,
        base - shape[0] * 0.025,
        text,
        ha='center',
        va='bottom',
        size=6.5,
        color='black',
        zorder=6,
        bbox={'boxstyle': 'round,pad=0.12', 'facecolor': 'white', 'alpha': 0.75, 'linewidth': 0},
    )
