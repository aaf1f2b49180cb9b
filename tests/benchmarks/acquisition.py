r"""How well `pipelines.align` undid what the simulated microscope did.

    python tests/benchmarks/acquisition.py --make FOLDER [--seed 1] [--workers 2]

makes synthetic tissue, images it as 24 sections of 7 fields of 19 beams (a section missing, a
double cut, a fold, two tears, 1 % of the tiles missing and 0.5 % corrupt), aligns the tiles with
the settings of `align.yaml`, and prints what follows. What is there already is not made again.

    python tests/benchmarks/acquisition.py --acquisition FOLDER --run RUN

judges a run of `pipelines.align` over any output of `pipelines.microscope`.

Every place of the aligned volume shows some place of the tissue. Between neighbouring sections that
must not jump: jitter is the RMS of its change from one section to the next, in full-size pixels,
here and with the affine maps alone. On good tissue: no closer than `--away` um to a fold or tear of
either section, nor to where the section ends. What is damaged, by the microscope's own account, is
compared with what the report says of every section.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from h01_beam.alignment.frames import ToFrame, affine_of
from h01_beam.export.finished_run import FinishedRun
from h01_beam.geometry import BoundingBox
from h01_beam.registration.maps import CoordinateMap, grid_points
from h01_beam.run import Run
from h01_beam.stitching.blocks import placed_maps
from h01_beam.tables import Columns, from_parquet, from_parquets
from h01_beam.testing.microscope.stage import read_geometry
from h01_beam.volume import Volume

SPACING = 96  # full-size pixels between the places that are compared
# What `--make` images; the rest is as in `microscope.yaml`.
ACQUISITION = {
    'beams': 19,
    'fields': 7,
    'field_overlap': 0.05,
    'damage.double_cuts': [3],
    'damage.missing_sections': [12],
    'damage.folded_sections': [16],
    'damage.torn_sections': [7, 20],
    'damage.missing_tiles': 0.01,
    'damage.corrupt_tiles': 0.005,
    'damage.dirty_tiles': 0,
    'damage.blurred_tiles': 0,
    'damage.charged_tiles': 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--acquisition')
    parser.add_argument('--run')
    parser.add_argument('--make', help='folder for tissue, tiles and volume')
    parser.add_argument('--seed', type=int, default=1, help='of the microscope')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--away', type=float, default=1.0, help='um')
    args = parser.parse_args()
    if args.make:
        args.acquisition, args.run = make(Path(args.make), args.seed, args.workers)
    if not args.acquisition or not args.run:
        parser.error('give --make, or both --acquisition and --run')
    judge = Judge(args.acquisition, args.run)
    compare_damage(args.acquisition, args.run)
    for name, elastic in (('aligned', True), ('affine alone', False)):
        fields = {p: judge.tissue_places(p, elastic) for p in judge.placed()}
        jumps, known = [], 0
        for position in sorted(fields):
            before = [p for p in fields if p < position]
            if before:
                jump = fields[position] - fields[max(before)]
                good = np.isfinite(jump).all(axis=0)
                good &= judge.good(position, args.away) & judge.good(max(before), args.away)
                jumps.append((jump[:, good] ** 2).sum(axis=0) / judge.pixel_nm**2)
                known += int(good.sum())
        rms = [float(np.sqrt(j.mean())) for j in jumps if len(j)]
        joined = np.sqrt(np.concatenate(jumps))
        print(
            f'{name:<14} jitter {np.sqrt((joined**2).mean()):6.2f} px RMS, median '
            f'{np.median(joined):.2f}, p95 {np.quantile(joined, 0.95):.2f}; by section '
            f'{" ".join(f"{r:.1f}" for r in rms)}; {known} places'
        )


def make(folder: Path, seed: int, workers: int) -> tuple[str, str]:
    """Tissue, tiles and the aligned volume; what took how long is printed."""
    acquisition, aligned = str(folder / 'acquisition'), str(folder / 'aligned')
    options = ['--runner', 'DirectRunner', '--direct_running_mode=multi_processing']
    options += [f'--direct_num_workers={workers}']
    tissue = ['--shape', '24,3328,4096', '--voxel_size_nm', '33,4,4', '--seed', '11']
    microscope = {
        'source.phantom': 'null', 'source.volume': folder / 'tissue/volumes/image',
        'microscope.seed': seed, **{f'microscope.{k}': v for k, v in ACQUISITION.items()},
    }  # fmt: skip
    align = {
        'tiles.source': f'{acquisition}/tiles.parquet',
        'tiles.sections': f'{acquisition}/sections.parquet',
    }
    for name, arguments in (
        ('phantom', ['--output', str(folder / 'tissue'), *tissue]),
        ('microscope', ['--output', acquisition, *as_flags('microscope', microscope)]),
        ('align', ['--run_dir', aligned, *as_flags('align', align)]),
    ):
        started, cpu = time.perf_counter(), _cpu_seconds()
        command = [sys.executable, '-m', f'pipelines.{name}', *arguments, *options]
        subprocess.run(command, check=True)
        print(
            f'{name:<14} {time.perf_counter() - started:6.0f} s with {workers} workers, '
            f'{_cpu_seconds() - cpu:.0f} CPU s'
        )
    return acquisition, aligned


def _cpu_seconds() -> float:
    """Of all processes that were started and have ended, those that they started included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def as_flags(name: str, values: Mapping[str, object]) -> list[str]:
    """The flags of a pipeline for one of its ready configurations with some values changed."""
    sets = [part for k, v in values.items() for part in ('--set', f'{k}={v}')]
    return ['--config', f'pipelines/configs/{name}.yaml', *sets]


def compare_damage(acquisition: str, run: str) -> None:
    """Prints what the report says of sections and tiles beside what was done to them."""
    damage = from_parquet(Path(acquisition, 'truth', 'damage.parquet').read_bytes())
    done = list(zip(damage['kind'].tolist(), damage['section'].tolist(), strict=True))
    sections = json.loads(Path(run, 'report.json').read_text())['sections']
    bad_tiles = ('missing_tile', 'truncated_file', 'scrambled_file')
    told_tiles = sum(s['bad'] + s['missing'] for s in sections)
    print(f'tiles missing or corrupt: {sum(k in bad_tiles for k, _ in done)}, told {told_tiles}')
    for name, kind in (('folds', 'fold'), ('tears', 'tear')):
        told = {s['section']: s[name] for s in sections if s[name]}
        print(f'{name}: sections {[n for k, n in done if k == kind]}, told {told}')
    missing = [s['section'] for s in sections if s['state'] == 'missing']
    print(f'missing: {[n for k, n in done if k == "missing_section"]}, told {missing}')
    lost = [(s['section'], s['state']) for s in sections if s['state'] not in ('placed', 'missing')]
    doubled = [s['section'] for s in sections if s.get('double_cut')]
    print(f'double cuts: {[n for k, n in done if k == "double_cut"]}, told {doubled}')
    print(f'sections that are neither missing nor placed: {lost}')


class Judge:
    """Where the places of an aligned volume lie in the tissue, by the microscope's own account."""

    def __init__(self, acquisition: str, run: str, spacing: int = SPACING) -> None:
        self._spacing = spacing
        self._run = Run.at(run)
        finished = FinishedRun(run)
        config = finished.manifest['config']
        self.pixel_nm = config['tiles']['pixel_nm']
        self._downsample = config['stitch']['downsample']
        self._flow_stride = config['align']['flow']['stride']
        self._tile_stride = config['stitch']['elastic']['stride']
        self._report = json.loads(Path(run, 'report.json').read_text())
        self._geometry = read_geometry(acquisition)
        self._affines = finished.all_rows('affines')
        self._sections = finished.all_rows('sections')['section']
        truth = from_parquet(Path(acquisition, 'truth', 'tiles.parquet').read_bytes())
        keys = zip(truth['section'], truth['field'], truth['beam'], strict=True)
        places = np.stack([truth['y_nm'], truth['x_nm']], axis=1)
        self._true = {tuple(map(int, k)): p for k, p in zip(keys, places, strict=True)}
        self._image = Volume.open(self._run.volume_uri('image'))
        self._mesh = Volume.open(self._run.volume_uri('mesh'))
        self._from_cuts: dict[int, np.ndarray] = {}  # nm, by section

    def placed(self) -> list[int]:
        return np.flatnonzero(self._affines['state'] == 'placed').tolist()

    def section(self, position: int) -> int:
        """The number of the section at a position."""
        return int(self._sections[position])

    @property
    def double_cuts(self) -> list[int]:
        """Numbers of sections that are twice as thick."""
        return [int(s['section']) for s in self._report['sections'] if s.get('double_cut')]

    def good(self, position: int, away_um: float) -> np.ndarray:
        """(h, w) places that are shown, and that no fold, tear or end of the section is near.

        The mesh closes tears, so that what is shown does not tell where they are: the truth does.
        """
        seen = np.isfinite(self.tissue_places(position, True)[0])
        steps = max(1, round(1000 * away_um / (self._spacing * self.pixel_nm)))
        disc = np.hypot(*np.mgrid[-steps : steps + 1, -steps : steps + 1]) <= steps
        inner = np.asarray(ndimage.binary_erosion(seen, disc))
        return inner & (self._from_cuts[position] > 1000 * away_um)

    def tissue_places(self, position: int, elastic: bool) -> np.ndarray:
        """(2, h, w) nm in the tissue that a lattice of places shows; NaN for none."""
        shape = [n // self._spacing for n in self._image.bounds.shape[1:]]
        points = grid_points((0.0, 0.0), self._spacing, (shape[0], shape[1]))
        box = BoundingBox((position, 0, 0), (1, *self._mesh.bounds.shape[1:]))
        vectors = self._mesh.read(box)[:, 0] * np.float32(elastic)
        mesh = CoordinateMap(np.ascontiguousarray(vectors), (0.0, 0.0), self._flow_stride)
        to_frame = ToFrame(affine_of(self._affines, position), mesh, self._downsample)
        frame = to_frame(points)
        result, from_cuts = np.full(points.shape, np.nan), np.full(points.shape[1:], np.inf)
        tiles, nodes = self._rows(position)
        section = self.section(position)
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
            from_cuts[inside] = self._geometry.section(section).nm_from_cuts(*stage)
        extent = self._geometry.extent
        low = np.array(extent.start_nm[1:]).reshape(2, 1, 1)
        high = low + np.array(extent.shape_nm[1:]).reshape(2, 1, 1)
        result[:, ~((result > low) & (result < high)).all(axis=0)] = np.nan
        if elastic:
            self._from_cuts[position] = from_cuts
        return result

    def _rows(self, position: int) -> tuple[Columns, Columns]:
        tiles = from_parquet(Path(self._run.table_part('tiles', (position, 0, 0))).read_bytes())
        paths = sorted(Path(self._run.table('nodes'), 'parts', str(position)).glob('*.parquet'))
        return tiles, from_parquets(path.read_bytes() for path in paths)


if __name__ == '__main__':
    main()
