"""Pictures of a segmentation run for its report: what it looks like, its objects, its work."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from h01_beam import storage, tables
from h01_beam.export.colors import paint_segments
from h01_beam.export.finished_run import FinishedRun
from h01_beam.export.planes import Planes
from h01_beam.volume import VoxelSize

INK, MUTED, LINE, ACCENT, SECOND = '#1c2330', '#5a6577', '#dde2ea', '#3d6fb4', '#c4622d'
# Inches: width of every figure; in the overview, space between planes, and for the titles.
PLANE_NAMES = {'yx': 'xy', 'zx': 'xz', 'zy': 'zy'}
WIDTH = 10.8
GAP = 0.06
TITLE = 0.3


def figures(run_path: str) -> dict[str, str]:
    """Draws the pictures of a finished segmentation run into its figures folder.

    Reads three planes of the middle of each volume, and samples of rows and markers: no more for
    a large run than for a small one.

    Args:
      run_path: the run directory.

    Returns:
      caption by path of the PNG file.
    """
    run = FinishedRun(run_path)
    image, segmentation, voxel_size_nm = run.middle()
    rows = run.sample_rows('objects', 'flood', tables.OBJECTS)
    drawn = {
        run.figure('overview.png'): (
            draw_overview(image, segmentation, voxel_size_nm),
            'The middle of the volume and its segments, in the colours of Neuroglancer.',
        ),
        run.figure('objects.png'): (draw_objects(rows, voxel_size_nm), _objects_caption(rows)),
    }
    blocks = run.sample_markers('flood')
    if len(blocks) > 1:
        index = np.array([block.index for block, _ in blocks])
        seconds = np.array([marker.seconds for _, marker in blocks])
        steps = np.array([marker.metrics.get('fov_steps', 0) for _, marker in blocks])
        drawn[run.figure('blocks.png')] = (
            draw_block_work(index, seconds, steps),
            f'The work of flood filling in {len(blocks):,} blocks.',
        )
    for path, (png, _) in drawn.items():
        storage.write_bytes(path, png)
    captions = {path: caption for path, (_, caption) in drawn.items()}
    errors = storage.join(run.path, 'evaluation', 'scores.png')
    if run.manifest['config'].get('truth') and storage.exists(errors):
        captions[errors] = 'Where it errs most: split objects of the truth, and merging segments.'
    return captions


def scores(run_path: str) -> dict[str, Any] | None:
    """Scores of a segmentation run and of its baseline, if the truth was given.

    Returns:
      `foreground` and `all`, as `pipelines.evaluate` writes them, and `baseline` with the same two
      if the run has one. None stands for a score that is not defined.
    """
    run = FinishedRun(run_path)
    config = run.manifest['config']
    if not config.get('truth'):
        return None
    found = _read_scores(run.path)
    if config['baseline'] is not None:
        found['baseline'] = _read_scores(storage.join(run.path, 'baseline'))
    return found


def _read_scores(run_path: str) -> dict[str, Any]:
    scores = json.loads(storage.read_bytes(storage.join(run_path, 'evaluation', 'scores.json')))
    return {region: scores[region] for region in ('foreground', 'all')}


def highlights(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the top of the report says of a segmentation run.

    Args:
      content: of report.json; see `h01_beam.report.collect`.
    """
    told = _highlight_scores(content['scores']) if 'scores' in content else {}
    stages = content['stages']
    flood, joined = stages['flood'], stages['components']
    told |= {
        # Every supervoxel that has another's id joined that one's segment.
        'segments': flood['rows'] - joined['rows'],
        'supervoxels': flood['rows'],
        'FOV steps': int(flood.get('fov_steps', 0)),
    }
    if flood['wall_seconds'] and not flood['blocks_reused']:
        told['FOV steps per second'] = round(told['FOV steps'] / flood['wall_seconds'], 1)
    if 'network_share' in flood:
        told['network share, %'] = round(100 * flood['network_share'], 1)
    walls = [stage.get('wall_seconds', 0) for stage in stages.values()]
    return {**told, 'stage time, s': round(sum(walls), 1)}


def _highlight_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    foreground, fraction = scores['foreground'], scores['all']['erl_fraction']
    told = {'coverage, %': round(100 * foreground['coverage'], 1)}
    # Not defined where nothing is labelled, or without a voxel size.
    if foreground['voi_split'] is not None:
        bits = foreground['voi_split'] + foreground['voi_merge']
        told = {'VOI split + merge, bits': round(bits, 3), **told}
    if fraction is not None:
        told["run length, % of the truth's"] = round(100 * fraction, 1)
    return told


def draw_overview(image: Planes, segmentation: Planes, voxel_size_nm: VoxelSize) -> bytes:
    """Draws three orthogonal planes: the image left, its segments right.

        +-----------+-----+  +-----------+-----+
        |    yx     | zy  |  |           |     |   z runs to the right in zy, downwards in zx;
        |           |     |  | segments  |     |   dotted lines: where the planes meet
        +-----------+-----+  +-----------+-----+
        |    zx     |        |           |
        +-----------+        +-----------+

    Args:
      image: uint8.
      segmentation: the same planes, ids, 0 = unlabelled.
      voxel_size_nm: zyx; panels have the true proportions of the tissue.

    Returns:
      PNG.
    """
    extents_nm = [n * s for n, s in zip(image.box.shape, voxel_size_nm, strict=True)]
    z, y, x = extents_nm
    inches_per_nm = (WIDTH - 3 * GAP) / 2 / (x + z)
    height = (y + z) * inches_per_nm + GAP + TITLE
    figure = _new_figure(WIDTH, height)
    low, high = np.percentile(image.yx, (0.3, 99.7))
    for side, title in enumerate((_place(image, voxel_size_nm), _census(segmentation))):
        left = side * (WIDTH + GAP) / 2
        figure.text(left / WIDTH, 1 - 0.19 / height, title, size=9.5, color=MUTED)
        for name, (x0, y0, dx, dy) in _arrange(z, y, x).items():
            grey = _stretch(_upright(image, name), low, high)
            labels = _upright(segmentation, name)
            rgb = _overlay(grey, labels) if side else np.repeat(grey[..., None], 3, axis=2)
            x_inches = left + x0 * inches_per_nm + GAP * (x0 > 0)
            y_inches = TITLE + (y0 + dy) * inches_per_nm + GAP * (y0 > 0)
            frame = (
                x_inches / WIDTH, 1 - y_inches / height,
                dx * inches_per_nm / WIDTH, dy * inches_per_nm / height,
            )  # fmt: skip
            axes = _draw_plane(figure, frame, rgb, PLANE_NAMES[name])
            if not side and name == 'yx':
                _draw_scale_bar(axes, voxel_size_nm[2], rgb.shape)
    return _png(figure)


def draw_objects(rows: Mapping[str, npt.NDArray[Any]], voxel_size_nm: VoxelSize) -> bytes:
    """Draws how large the objects are that flood filling made, and what they cost.

    Args:
      rows: columns of `tables.OBJECTS`; may be empty.
      voxel_size_nm: zyx.

    Returns:
      PNG.
    """
    um3 = rows['voxels'] * float(np.prod(voxel_size_nm)) * 1e-9
    edges = np.geomspace(um3.min() * 0.95, um3.max() * 1.05, 31) if len(um3) else [0.01, 1]
    figure = _new_figure(WIDTH, 3.0)
    counts, shares = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.87, bottom=0.17, wspace=0.17)
    counts.hist(um3, bins=edges, color=ACCENT, rwidth=0.9)
    _label(counts, 'Objects by volume', 'volume, µm³', 'objects')
    for column, color, what in (
        ('voxels', ACCENT, 'of the volume'), ('fov_steps', SECOND, 'of the FOV steps'),
    ):  # fmt: skip
        weights = 100 * rows[column] / max(1, rows[column].sum())
        shares.hist(um3, bins=edges, weights=weights, histtype='step', linewidth=1.8, color=color,
                    label=what)  # fmt: skip
    shares.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc='upper left')
    _label(shares, 'What they hold, and what they cost', 'volume, µm³', '%')
    for axes in (counts, shares):
        axes.set_xscale('log')
    return _png(figure)


def draw_block_work(
    index: npt.NDArray[np.int64], seconds: npt.NDArray[np.float64], fov_steps: npt.NDArray[Any]
) -> bytes:
    """Draws how long blocks took, what that depends on, and where they lie.

    Args:
      index: (blocks, 3), zyx in the grid; at least one block.
      seconds: of each block.
      fov_steps: of each block.

    Returns:
      PNG.
    """
    figure = _new_figure(WIDTH, 3.0)
    times, costs, places = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.06, right=0.96, top=0.87, bottom=0.17, wspace=0.3)
    times.hist(seconds, bins=min(30, max(5, len(seconds) // 2)), color=ACCENT, rwidth=0.9)
    _label(times, 'Blocks by time', 'seconds', 'blocks')
    costs.scatter(fov_steps, seconds, s=14, color=ACCENT, alpha=0.7, linewidths=0)
    costs.set(xlim=(0, None), ylim=(0, None))
    _label(costs, 'What time depends on', 'FOV steps of the block', 'seconds')
    _draw_map(figure, places, index, seconds)
    return _png(figure)


def _place(planes: Planes, voxel_size_nm: VoxelSize) -> str:
    z, y, x = planes.centre
    voxel = ' × '.join(f'{size:g}' for size in voxel_size_nm)
    return f'image at z {z}, y {y}, x {x};  voxels of {voxel} nm (z, y, x)'


def _census(planes: Planes) -> str:
    seen = [np.unique(plane) for plane in (planes.yx, planes.zx, planes.zy)]
    segments = np.setdiff1d(np.concatenate(seen), [0]).size
    voxels = sum(plane.size for plane in (planes.yx, planes.zx, planes.zy))
    labelled = sum(np.count_nonzero(plane) for plane in (planes.yx, planes.zx, planes.zy))
    return f'{segments:,} segments in these planes;  {labelled / voxels:.1%} of the voxels labelled'


def _arrange(z: float, y: float, x: float) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, width and height of each plane, in nm."""
    return {'yx': (0, 0, x, y), 'zy': (x, 0, z, y), 'zx': (0, y, x, z)}


def _upright(planes: Planes, name: str) -> npt.NDArray[Any]:
    """A plane as it is drawn: zy with z to the right, next to yx."""
    return planes.zy.T if name == 'zy' else np.asarray(getattr(planes, name))


def _stretch(plane: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    scaled = (plane.astype(np.float32) - low) * (255 / max(1.0, high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _overlay(grey: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The segments' colours over the image, stronger at their rims: like colours stay apart."""
    rim = np.zeros(labels.shape, bool)
    for before, after in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = labels[before] != labels[after]
        rim[before] |= differ
        rim[after] |= differ
    inner, outer = (paint_segments(grey, labels, alpha) for alpha in (0.42, 0.8))
    return np.where(rim[..., None], outer, inner)


def _draw_plane(
    figure: Figure,
    frame: tuple[float, float, float, float],
    rgb: npt.NDArray[np.uint8],
    name: str,
) -> Axes:
    axes = figure.add_axes(frame)
    axes.imshow(rgb, interpolation='nearest', aspect='auto')
    axes.set_axis_off()
    rows, columns = rgb.shape[:2]
    style: dict[str, Any] = {'color': 'white', 'linewidth': 0.6, 'alpha': 0.7}
    axes.axhline(rows // 2, linestyle=(0, (1, 3)), **style)
    axes.axvline(columns // 2, linestyle=(0, (1, 3)), **style)
    _annotate(axes, name, (0, 1), offset=(5, -13), size=8)
    return axes


def _draw_scale_bar(axes: Axes, voxel_nm: float, shape: tuple[int, ...]) -> None:
    """Draws a bar of a round length, at most a quarter of the plane's width."""
    target_nm = shape[1] * voxel_nm / 4
    power = 10 ** np.floor(np.log10(target_nm))
    bar_nm = max(step * power for step in (1, 2, 5) if step * power <= target_nm)
    text = f'{bar_nm / 1000:g} µm' if bar_nm >= 1000 else f'{bar_nm:g} nm'
    left, base = shape[1] * 0.03, shape[0] * 0.965
    right = left + bar_nm / voxel_nm
    for color, weight in (('black', 5.0), ('white', 3.0)):
        axes.plot([left, right], [base, base], color=color, linewidth=weight,
                  solid_capstyle='butt')  # fmt: skip
    middle = (left + right) / 2 / shape[1]
    _annotate(axes, text, (middle, 1 - base / shape[0]), offset=(0, 4), ha='center', size=9)


def _annotate(
    axes: Axes, text: str, place: tuple[float, float], offset: tuple[int, int], **style: Any
) -> None:
    """White text for any ground; `place` is in parts of the axes, `offset` in points."""
    label = axes.annotate(
        text, place, xycoords='axes fraction', xytext=offset, textcoords='offset points',
        color='white', weight='bold', **style,
    )  # fmt: skip
    label.set_path_effects([patheffects.withStroke(linewidth=2, foreground='black')])


def _draw_map(
    figure: Figure, axes: Axes, index: npt.NDArray[np.int64], seconds: npt.NDArray[np.float64]
) -> None:
    """Mean seconds of the blocks over y and x; places of which no block was sampled are blank."""
    shape = tuple(index[:, 1:].max(axis=0) + 1)
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (index[:, 1], index[:, 2]), seconds)
    np.add.at(count, (index[:, 1], index[:, 2]), 1)
    with np.errstate(invalid='ignore'):
        mean = total / count
    shown = axes.imshow(mean, cmap='cividis', vmin=0)
    bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _label(axes, 'Where it goes, seconds', 'block, x', 'block, y')
    axes.spines[:].set_visible(False)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc='left', size=10.5, weight='bold', color=INK)
    axes.set_xlabel(x, size=9, color=MUTED)
    axes.set_ylabel(y, size=9, color=MUTED)
    axes.tick_params(labelsize=8, colors=MUTED, length=2)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(LINE)


def _objects_caption(rows: Mapping[str, npt.NDArray[Any]]) -> str:
    if not len(rows['voxels']):
        return 'No object was found.'
    median = int(np.median(rows['voxels']))
    return (
        f'{len(rows["voxels"]):,} objects as flood filling made them, before those of neighbouring '
        f'blocks were joined; the median has {median:,} voxels.'
    )


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=160, facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    # No date and no version: the same run gives the same bytes.
    figure.savefig(out, format='png', metadata={'Software': 'h01_beam'})
    return out.getvalue()
