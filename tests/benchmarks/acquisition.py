r"""How well `pipelines.align` undid what the simulated microscope did.

    python -m pipelines.microscope --config pipelines/configs/microscope.yaml --output acquisition
    python -m pipelines.align --config pipelines/configs/align.yaml --run_dir aligned \
        --set tiles.source=acquisition/tiles.parquet \
        --set tiles.sections=acquisition/sections.parquet
    python tests/benchmarks/acquisition.py --acquisition acquisition --run aligned

Every place of the aligned volume shows some place of the tissue. Between neighbouring sections that
must not jump: jitter is the RMS of its change from one section to the next, in full-size pixels,
here and with the affine maps alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from h01_beam.alignment.frames import ToFrame, affine_of
from h01_beam.alignment.maps import CoordinateMap, grid_points
from h01_beam.export.finished_run import FinishedRun
from h01_beam.geometry import BoundingBox
from h01_beam.run import Run
from h01_beam.stitching.blocks import placed_maps
from h01_beam.tables import from_parquet, from_parquets
from h01_beam.testing.microscope.stage import read_geometry
from h01_beam.volume import Volume

SPACING = 96  # pixels between the places that are compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--acquisition', required=True)
    parser.add_argument('--run', required=True)
    args = parser.parse_args()
    judge = Judge(args.acquisition, args.run)
    for name, elastic in (('aligned', True), ('affine alone', False)):
        fields = {p: judge.tissue_places(p, elastic) for p in judge.placed()}
        jumps, known = [], 0
        for position in sorted(fields):
            before = [p for p in fields if p < position]
            if before:
                jump = fields[position] - fields[max(before)]
                good = np.isfinite(jump).all(axis=0)
                jumps.append((jump[:, good] ** 2).sum(axis=0) / judge.pixel_nm**2)
                known += int(good.sum())
        rms = [float(np.sqrt(j.mean())) for j in jumps if len(j)]
        joined = np.sqrt(np.concatenate(jumps))
        print(
            f'{name:<14} jitter {np.sqrt((joined**2).mean()):6.2f} px RMS, median '
            f'{np.median(joined):.2f}, p95 {np.quantile(joined, 0.95):.2f}; by section '
            f'{" ".join(f"{r:.1f}" for r in rms)}; {known} places'
        )


class Judge:
    """Where the places of an aligned volume lie in the tissue, by the microscope's own account."""

    def __init__(self, acquisition: str, run: str) -> None:
        self._run = Run.at(run)
        finished = FinishedRun(run)
        config = finished.manifest['config']
        self.pixel_nm = config['tiles']['pixel_nm']
        self._downsample = config['stitch']['downsample']
        self._flow_stride = config['align']['flow']['stride']
        self._tile_stride = config['stitch']['elastic']['stride']
        self._geometry = read_geometry(acquisition)
        self._affines = finished.all_rows('affines')
        self._sections = finished.all_rows('sections')['section']
        truth = from_parquet(Path(acquisition, 'truth', 'tiles.parquet').read_bytes())
        keys = zip(truth['section'], truth['field'], truth['beam'], strict=True)
        places = np.stack([truth['y_nm'], truth['x_nm']], axis=1)
        self._true = {tuple(map(int, k)): p for k, p in zip(keys, places, strict=True)}
        self._image = Volume.open(self._run.volume_uri('image'))
        self._mesh = Volume.open(self._run.volume_uri('mesh'))

    def placed(self) -> list[int]:
        return np.flatnonzero(self._affines['state'] == 'placed').tolist()

    def tissue_places(self, position: int, elastic: bool) -> np.ndarray:
        """(2, h, w) nm in the tissue that a lattice of places shows; NaN for none."""
        shape = [n // SPACING for n in self._image.bounds.shape[1:]]
        points = grid_points((0.0, 0.0), SPACING, (shape[0], shape[1]))
        box = BoundingBox((position, 0, 0), (1, *self._mesh.bounds.shape[1:]))
        vectors = self._mesh.read(box)[:, 0] * np.float32(elastic)
        mesh = CoordinateMap(np.ascontiguousarray(vectors), (0.0, 0.0), self._flow_stride)
        to_frame = ToFrame(affine_of(self._affines, position), mesh, self._downsample)
        frame = to_frame(points)
        result = np.full(points.shape, np.nan)
        tiles, nodes = self._rows(position)
        section = int(self._sections[position])
        everywhere = (-(10**6), -(10**6)), (2 * 10**6, 2 * 10**6)
        for row, inverse in placed_maps(nodes, self._tile_stride, *everywhere):
            pixel = inverse(frame)
            size = np.array([tiles['height'][row], tiles['width'][row]]).reshape(2, 1, 1)
            inside = ((pixel >= 0) & (pixel <= size - 1)).all(axis=0) & np.isnan(result[0])
            if not inside.any():
                continue
            true = self._true[section, int(tiles['field'][row]), int(tiles['beam'][row])]
            stage = true[:, None] + pixel[:, inside] * self.pixel_nm
            result[:, inside] = np.stack(self._geometry.tissue_at(section, *stage)[:2])
        extent = self._geometry.extent
        low = np.array(extent.start_nm[1:]).reshape(2, 1, 1)
        high = low + np.array(extent.shape_nm[1:]).reshape(2, 1, 1)
        result[:, ~((result > low) & (result < high)).all(axis=0)] = np.nan
        return result

    def _rows(self, position: int):
        tiles = from_parquet(Path(self._run.table_part('tiles', (position, 0, 0))).read_bytes())
        paths = sorted(Path(self._run.table('nodes'), 'parts', str(position)).glob('*.parquet'))
        return tiles, from_parquets(path.read_bytes() for path in paths)


if __name__ == '__main__':
    main()
