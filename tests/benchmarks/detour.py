r"""What imaging, stitching and alignment cost a segmentation.

    python -m tests.benchmarks.detour --make FOLDER [--seed 1] [--workers 2]

Synthetic tissue (48 sections of 30 nm, 5.1 um wide, 4 nm pixels) is segmented twice by the network
that ships with the project: as it is, at 16 nm; and after it was imaged by the microscope with the
damage that is typical of H01 (two double cuts, a missing section, some bad tiles), and stitched and
aligned with the settings of `align.yaml`. The second segmentation is put back into the frame of the
tissue by the microscope's own account of where everything lies; then both are scored on the same
voxels against the same truth. Prints both scores, and the ratio of their expected run lengths. What
is there already is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.interpolate import LinearNDInterpolator

from h01_beam.geometry import BoundingBox
from h01_beam.registration.maps import grid_points
from h01_beam.volume import Volume
from pipelines import demo
from tests.benchmarks.acquisition import Judge, as_flags

SECTIONS, THICKNESS_NM, PIXEL_NM, SIDE = 48, 30.0, 4.0, 1280
MIPS, FACTOR = 2, 4  # to the pixels of the network
# Of the tissue, pixels of the network: what is segmented as it is, and what both are scored on.
SEGMENTED, SCORED = (40, 240), (56, 208)
SPACING = 32  # full-size pixels between the places by which segments are put back
DAMAGE = {
    'double_cuts': [10, 30],
    'missing_sections': [20],
    'missing_tiles': 0.005,
    'corrupt_tiles': 0.002,
    'dirty_tiles': 0.01,
    'blurred_tiles': 0.01,
    'charged_tiles': 0.01,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--make', required=True, type=Path, help='folder for all that is made')
    parser.add_argument('--seed', type=int, default=1, help='of the microscope')
    parser.add_argument('--tissue_seed', type=int, default=4001)
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    detour = Detour(args.make, args.workers)
    detour.make_tissue(args.tissue_seed)
    detour.image_and_align(args.seed)
    scores = {'as it is': detour.score_direct(), 'aligned': detour.score_aligned()}
    for name, part in scores.items():
        print(json.dumps({'tissue': name, **part}))
    ratio = scores['aligned']['erl_nm'] / scores['as it is']['erl_nm']
    print(f'run length after the detour: {ratio:.3f} of that without it')


@dataclasses.dataclass(frozen=True)
class Detour:
    """The steps, each of which leaves its results in the folder."""

    folder: Path
    workers: int

    def make_tissue(self, seed: int) -> None:
        tissue = self.folder / 'tissue'
        self.run(
            'phantom', '--output', tissue, '--shape', f'{SECTIONS},{SIDE},{SIDE}', '--seed', seed,
            '--voxel_size_nm', f'{THICKNESS_NM:g},{PIXEL_NM:g},{PIXEL_NM:g}', '--difficulty', 0.3,
        )  # fmt: skip
        for name in ('image', 'neuron'):
            self.run(
                'downsample', '--volume', tissue / 'volumes' / name, '--set', f'levels={MIPS}',
                '--set', 'factors=[[1,2,2],[1,2,2]]', '--run_dir', self.folder / f'mips_{name}',
            )  # fmt: skip

    def image_and_align(self, seed: int) -> None:
        acquisition = self.folder / 'acquisition'
        microscope: dict[str, object] = {
            'source.phantom': 'null',
            'source.volume': self.folder / 'tissue/volumes/image',
            'microscope.seed': seed,
            'microscope.thickness_nm': THICKNESS_NM,
            **{f'microscope.damage.{name}': value for name, value in DAMAGE.items()},
            **{f'microscope.damage.{name}_sections': [] for name in ('torn', 'folded')},
        }
        self.run('microscope', '--output', acquisition, *as_flags('microscope', microscope))
        align = {
            'tiles.source': acquisition / 'tiles.parquet',
            'tiles.sections': acquisition / 'sections.parquet',
        }
        self.run('align', '--run_dir', self.folder / 'aligned', *as_flags('align', align))

    def score_direct(self) -> dict[str, float]:
        start, side = SEGMENTED
        labels = self.segment('direct', self.folder / 'tissue/volumes/image', (start, start), side)
        inner = SCORED[0] - start
        cut = slice(inner, inner + SCORED[1])
        return self.score('direct', labels[:, cut, cut])

    def score_aligned(self) -> dict[str, float]:
        judge = Judge(
            str(self.folder / 'acquisition'), str(self.folder / 'aligned'), spacing=SPACING
        )
        places = find_places(judge)
        known = places[np.isfinite(places).all(axis=-1)]
        middle, side = np.median(known, axis=0), SEGMENTED[1]
        y, x = np.rint(middle - side / 2).astype(int).tolist()
        image = self.folder / 'aligned/volumes/image'
        labels = self.segment('after', image, (y, x), side)
        at = np.rint(places - np.array([y, x]))
        inside = ((at >= 0) & (at < side)).all(axis=-1)
        print(f'{inside.mean():.3f} of what is scored was imaged and segmented')
        rows, columns = np.where(inside[..., None], at, 0).astype(int).transpose(3, 0, 1, 2)
        z = np.arange(SECTIONS)[:, None, None]
        return self.score('after', np.where(inside, labels[z, rows, columns], 0))

    def segment(self, name: str, image: Path, start: tuple[int, int], side: int) -> np.ndarray:
        """(z, y, x) labels of a box of an image, all sections."""
        run_dir, half = self.folder / f'segment_{name}', side // 2
        config = {
            'image': f'{image}|neuroglancer-precomputed:?mip={MIPS}',
            'model': demo.NETWORK,
            'box': {'start': [0, *start], 'shape': [SECTIONS, side, side]},
            'grid.block_shape': [SECTIONS // 2, half, half],
            'output.chunk': [8, half // 2, half // 2],
        }
        self.run('segment', '--run_dir', run_dir, *as_flags('demo', config))
        volume = Volume.open(str(run_dir / 'volumes/segmentation'))
        return volume.read(BoundingBox((0, *start), (SECTIONS, side, side)))

    def score(self, name: str, labels: np.ndarray) -> dict[str, float]:
        """Scores of labels of what is scored of the tissue."""
        start, side = SCORED
        neuron = f'{self.folder}/tissue/volumes/neuron|neuroglancer-precomputed:?mip={MIPS}'
        box = BoundingBox((0, start, start), (SECTIONS, side, side))
        truth = Volume.open(neuron).read(box)
        for what, array in ((name, labels), ('truth', truth)):
            np.save(self.folder / f'{what}.npy', array.astype(np.uint64))
        output = self.folder / f'scores_{name}.json'
        voxel = f'{THICKNESS_NM:g},{PIXEL_NM * FACTOR:g},{PIXEL_NM * FACTOR:g}'
        self.run(
            'evaluate', '--segmentation', self.folder / f'{name}.npy',
            '--truth', self.folder / 'truth.npy', '--voxel_size_nm', voxel, '--output', output,
        )  # fmt: skip
        scores = json.loads(output.read_text())
        run = {n: scores['all'][n] for n in ('erl_nm', 'erl_fraction')}
        return run | {n: scores['foreground'][n] for n in ('voi_split', 'voi_merge', 'coverage')}

    def run(self, pipeline: str, *arguments: object) -> None:
        command = [sys.executable, '-m', f'pipelines.{pipeline}', *map(str, arguments)]
        options = ['--runner', 'DirectRunner', '--direct_running_mode=multi_processing']
        options += [f'--direct_num_workers={self.workers}']
        subprocess.run([*command, *options], check=True, stdout=sys.stderr)


def find_places(judge: Judge) -> np.ndarray:
    """Where in the aligned volume the voxels that are scored are shown.

    Returns:
      (z, y, x, 2) y and x in pixels of the network; NaN where nothing shows them.
    """
    start, side = SCORED
    centres = (np.arange(start, start + side) + 0.5) * PIXEL_NM * FACTOR
    wanted = np.stack(np.meshgrid(centres, centres, indexing='ij'), axis=-1)
    shown = {judge.section(position): position for position in judge.placed()}
    result = np.full((SECTIONS, side, side, 2), np.nan)
    for z in range(SECTIONS):
        # Of a double cut, the second half is shown by the first.
        doubled: Mapping[int, int] = {n + 1: shown[n] for n in judge.double_cuts if n in shown}
        position = shown.get(z, doubled.get(z))
        if position is None:
            continue
        tissue = judge.tissue_places(position, elastic=True)
        points = grid_points((0.0, 0.0), SPACING, tissue.shape[1:])
        known = np.isfinite(tissue).all(axis=0)
        if known.sum() > 3:
            back = LinearNDInterpolator(tissue[:, known].T, points[:, known].T)
            # Coarse pixel p has its centre at FACTOR p + (FACTOR - 1) / 2.
            result[z] = (back(wanted) - (FACTOR - 1) / 2) / FACTOR
    return result


if __name__ == '__main__':
    main()
