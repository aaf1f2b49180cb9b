"""Pictures of a segmentation run for its report: what it looks like, its objects, its work."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from h01_beam import storage, tables
from h01_beam.export.colors import paint_segments
from h01_beam.export.finished_run import FinishedRun
from h01_beam.export.planes import Planes, central_box, read_planes
from h01_beam.geometry import Block
from h01_beam.volume import Volume, VoxelSize

INK, MUTED, LINE, ACCENT, SECOND = '#1c2330', '#5a6577', '#dde2ea', '#3d6fb4', '#c4622d'
# Columns of pictures in the overview, and what is between them, in inches.
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
    image = Volume.open(run.manifest['config']['image'])
    segmentation = Volume.open(run.segmentation_uri)
    voxel_size_nm = segmentation.spec.voxel_size_nm
    assert voxel_size_nm is not None
    box = central_box(segmentation.bounds, voxel_size_nm)
    overview = draw_overview(
        read_planes(image, box), read_planes(segmentation, box), voxel_size_nm
    )
    rows = run.sample_rows('objects', 'flood', tables.OBJECTS)
    blocks = run.sample_markers('flood')
    drawn = {
        run.figure('overview.png'): (overview, 'The middle of the volume, and its segments.'),
        run.figure('objects.png'): (draw_objects(rows, voxel_size_nm), _objects_caption(rows)),
    }
    if len(blocks) > 1:
        picture = draw_block_work([(b, m.seconds, m.metrics) for b, m in blocks])
        drawn[run.figure('blocks.png')] = (picture, 'The work of flood filling, block by block.')
    for path, (png, _) in drawn.items():
        storage.write_bytes(path, png)
    return {path: caption for path, (_, caption) in drawn.items()}


def highlights(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the top of the report says of a segmentation run.

    Args:
      content: of report.json; see `h01_beam.report.collect`.
    """
    stages = content['stages']
    flood = stages.get('flood', {})
    return flood
