r"""How fast every stage is, in CPU seconds of one thread: writes the rates that `pipelines.plan` reads.

    python -m tests.benchmarks.stages --folder /tmp/stages --json pipelines/configs/plan/rates.json

Runs a simulated acquisition through `pipelines.align`, and synthetic tissue through
`pipelines.segment` in each precision, all in one process. Blocks are timed by the process's CPU
clock, so other work on the machine counts for little. Ranges are the 10th and the 90th percentile
of the blocks of a stage; what is typical is all its work by all its seconds. A run directory that is
there is not run again. Stages that no run has (coarse levels of the mesh, which small sections do not
need) keep the rates that the file had.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import apache_beam as beam
import numpy as np

from h01_beam import config as config_lib
from h01_beam import storage
from h01_beam.acquisition.importers import import_acquisition
from h01_beam.alignment.job import AlignJob
from h01_beam.alignment.stage import build_align_job
from h01_beam.forecast import rates, work
from h01_beam.forecast.dataset import DataSet, Tiles
from h01_beam.ledger import Marker
from h01_beam.models import ModelRef
from h01_beam.options import Options
from h01_beam.plan import BlockResult
from h01_beam.run import Resources, Run
from h01_beam.segmentation import seeds
from h01_beam.segmentation.config import SegmentConfig
from h01_beam.segmentation.ffn import FfnConfig, flood_fill
from h01_beam.segmentation.stage import build_segment
from h01_beam.testing.tubes import make_tubes
from pipelines import align, launch, microscope, phantom, segment

CONFIGS = Path(__file__).resolve().parents[2] / 'pipelines/configs'
MODEL = Path(__file__).resolve().parents[2] / 'models/ffn/weights/phantom_30x8x8.keras'
PRECISIONS = ('float32', 'bfloat16')
ONE_PROCESS = ['--direct_running_mode=in_memory', '--direct_num_workers=1']
# Peak bfloat16 TFLOP/s and memory, as the makers say. No chip was at hand: the share that a network
# of few channels reaches is derived. A matrix unit works on 128 channels at once; this network has
# 16, so an eighth of it is busy at best (high); a half and a sixth of that are typical and low.
CHIPS = {'tpu_v5e': (197.0, 16.0), 'tpu_v6e': (918.0, 32.0), 'nvidia_l4': (121.0, 24.0),
         'nvidia_h100': (989.0, 80.0)}  # fmt: skip


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument('--folder', required=True, type=Path)
    flags.add_argument('--json', required=True, type=Path)
    flags.add_argument('--tissue', type=launch.integers, default=(24, 160, 160))
    flags.add_argument('--acquisition', type=launch.integers, default=(5, 1024, 1024))
    args = flags.parse_args()
    time.perf_counter = time.process_time  # Of blocks, by which markers are timed.
    runs = run_align(args.folder, args.acquisition)
    for precision in PRECISIONS:
        runs |= run_segment(args.folder, precision, args.tissue)
    found = collect(runs)
    if args.json.exists():
        kept = json.loads(args.json.read_text())['stages']
        found['stages'] = dict(sorted((kept | found['stages']).items()))
    args.json.write_text(json.dumps(found, indent=1) + '\n')
    rates.load(str(args.json))


def call(job, flags, *argv) -> None:
    code = job(launch.parse(flags)([sys.argv[0], *map(str, argv), *ONE_PROCESS]))
    if code:
        raise SystemExit(code)


def run_align(folder: Path, shape) -> dict[str, str]:
    source, run_dir = folder / 'acquisition', folder / 'aligned'
    if not (source / 'report.json').exists():
        call(microscope.main, microscope.flags(), '--config', CONFIGS / 'microscope.yaml', '--output',
             source, '--set', f'source.phantom.shape={list(shape)}', '--set', 'microscope.damage={}',
             )  # fmt: skip
    if not (run_dir / 'report.json').exists():
        call(align.main, align.flags(), '--config', CONFIGS / 'align.yaml', '--run_dir', run_dir,
             '--set', f'tiles.source={source}/tiles.parquet',
             '--set', f'tiles.sections={source}/sections.parquet', '--set', 'contrast={}',
             )  # fmt: skip
    return {'align': str(run_dir)}


def run_segment(folder: Path, precision: str, shape) -> dict[str, str]:
    tissue, run_dir = folder / 'tissue', folder / f'segmented_{precision}'
    if not (tissue / 'report.json').exists():
        call(phantom.main, phantom.flags(), '--output', tissue, '--shape', ','.join(map(str, shape)),
             '--voxel_size_nm', '30,8,8', '--seed', 5)  # fmt: skip
    if not (run_dir / 'report.json').exists():
        call(segment.main, launch.parser(''), '--config', CONFIGS / 'demo.yaml', '--run_dir', run_dir,
             '--set', f'image={tissue}/volumes/image', '--set', f'model={MODEL}',
             '--set', 'grid.block_shape=[24, 80, 80]', '--set', 'output.chunk=[8, 40, 40]',
             '--set', 'ffn.seed_voxel_size_nm=[30, 8, 8]', '--set', 'inference.canvases=1',
             '--set', f'inference.precision={precision}')  # fmt: skip
    return {precision: str(run_dir)}


def collect(runs: dict[str, str]) -> dict:
    """The content of the rates file."""
    samples = defaultdict(list)
    fractions = defaultdict(list)
    aligned = plan_again(runs['align'])
    acquired = as_dataset(import_acquisition(aligned.config.tiles), aligned)
    for plan in aligned.plans:
        sample(plan, acquired, samples)
    segmented = [plan_again(runs[p]) for p in PRECISIONS]
    for plan in segmented[0].plans:
        if plan.name not in ('flood', 'components'):
            sample(plan, acquired, samples)
    for run in (aligned, *segmented[:1]):
        for path, spec in run.volumes().items():
            size = np.prod(spec.shape) * spec.voxel_bytes()
            fractions[spec.dtype].append(stored_bytes(path) / size)
    flood = {p: flooding(run) for p, run in zip(PRECISIONS, segmented)}
    components = {
        'unit': 'edges',
        'per_second': spread([15_000.0, 30_000.0, 60_000.0]),
        'blocks': 1,
    }
    stages = {key: rate_of(key, values) for key, values in samples.items()}
    # `tests/benchmarks/components.py`: 20 million edges in 169 to 192 s on two workers.
    stages['components'] = components
    stages['flood'] = {'unit': 'fov_steps', 'per_second': flood['float32']['steps'],
                       'blocks': flood['float32']['blocks']}  # fmt: skip
    return {
        'measured': datetime.date.today().isoformat(),
        'machine': machine(),
        'stages': dict(sorted(stages.items())),
        'flood_gflops': {p: flood[p]['gflops'] for p in PRECISIONS},
        'host_steps': host_steps(),
        'steps_per_voxel': flood['float32']['per_voxel'],
        'overhead_seconds': overhead(),
        'stored_fraction': {k: spread(v) for k, v in sorted(fractions.items())},
        'tile_bytes_per_pixel': tile_bytes(aligned.config),
        'accelerators': {name: chip(*values) for name, values in CHIPS.items()},
    }


class plan_again:  # noqa: N801
    """The stages of a finished run, planned again from its manifest, with their markers."""

    def __init__(self, path: str) -> None:
        manifest = json.loads(storage.read_bytes(f'{path}/run.json'))
        self.path = path
        root, run = (
            beam.Pipeline(runner='DirectRunner'),
            Run(path, Resources(1, 2**62), dry_run=True),
        )
        if manifest['job'] == 'align':
            self.config = config_lib.from_dict(AlignJob, manifest['config'])
            build_align_job(root, import_acquisition(self.config.tiles), self.config, run)
        else:
            self.config = config_lib.from_dict(SegmentConfig, manifest['config'])
            build_segment(root, self.config, run)
        self.plans = run.plans

    def volumes(self) -> dict:
        specs = [t.spec for p in self.plans for t in p.traffic if t.writes and t.spec]
        return {spec.path: spec for spec in specs if spec.mip == 0}


def as_dataset(acquisition, run) -> DataSet:
    shape = next(s for path, s in run.volumes().items() if path.endswith('/image')).shape
    tiles = acquisition.tiles
    beams = len(np.unique(tiles['beam']))
    return DataSet(
        name='simulated', shape=shape, voxel_size_nm=(33, 4, 4), bytes=int(np.prod(shape)),
        tiles=Tiles(count=len(tiles['path']),
                    shape=(int(tiles['height'].max()), int(tiles['width'].max())), beams=beams),
    )  # fmt: skip


def markers(plan) -> list[Marker]:
    found = [json.loads(storage.read_bytes(path)) for path in plan.ledger.markers_written()]
    return [Marker(**marker) for marker in found]


def sample(plan, dataset, samples) -> None:
    """Adds (units, seconds) of the blocks of a stage to those of its pattern."""
    done = markers(plan)
    each = work.units(plan, dataset) / max(1, len(done))
    samples[rates.pattern_of(plan.name)] += [(each, max(m.seconds, 1e-4)) for m in done]


def rate_of(key: str, values) -> dict:
    amount, seconds = np.array(values).T
    each = amount / seconds
    typical = amount.sum() / seconds.sum()
    low, high = np.quantile(each, [0.1, 0.9])
    return {'unit': rates.UNITS[key], 'blocks': len(values),
            'per_second': ordered(min(low, typical), typical, max(high, typical))}  # fmt: skip


def flooding(run) -> dict:
    plan = next(p for p in run.plans if p.name == 'flood')
    done = markers(plan)
    gflop = work.gflop_per_step(ModelRef.resolve(str(MODEL)).card)
    steps = np.array([m.metrics['fov_steps'] for m in done])
    speed = steps / np.array([m.seconds for m in done])
    voxels = next(t.voxels for t in plan.traffic if not t.writes) / len(done)
    return {
        'steps': spread(speed), 'gflops': spread(speed * gflop), 'blocks': len(done),
        'per_voxel': spread(steps / voxels),
    }  # fmt: skip


def host_steps() -> dict:
    """FOV steps per CPU second of the engine itself: the network answers at once."""
    card = ModelRef.resolve(str(MODEL)).card
    found = []
    for seed in range(3):
        image = make_tubes((48, 160, 160), seed=seed)[0]
        points = seeds.propose_seeds(image, 'peaks')
        count = 0

        def predict(images, values):
            nonlocal count
            count += 1
            # Every object goes on for as long as there is room.
            return np.full((*card.fov_shape,), 3.0, np.float32)

        start = time.process_time()
        flood_fill(image, predict, card.fov_shape, card.deltas, FfnConfig(), seed_points=points)
        found.append(count / (time.process_time() - start))
    return spread(found)


def overhead() -> dict:
    """CPU seconds that Beam and the ledger take for a block: a stage of blocks of one voxel."""
    import tempfile

    from h01_beam.blockwise import MapBlocks
    from h01_beam.geometry import BlockGrid, BoundingBox
    from h01_beam.tables import Schema

    found = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            run = Run(folder, Resources.local(1))
            count = 1000
            options = Options(ONE_PROCESS)
            started = time.process_time()
            with beam.Pipeline(options=options) as root:
                root | MapBlocks(
                    nothing, stage='nothing', run=run, table_writes={'rows': Schema({'a': 'int64'})},
                    grid=BlockGrid(BoundingBox((0, 0, 0), (1, 1, count)), (1, 1, 1)),
                )  # fmt: skip
            found.append((time.process_time() - started) / count)
    return spread(found)


def nothing():
    return BlockResult()


def stored_bytes(path: str) -> int:
    return sum(
        f.stat().st_size for f in Path(path).rglob('*') if f.is_file() and f.suffix != '.json'
    )


def tile_bytes(config) -> dict:
    tiles = import_acquisition(config.tiles).tiles
    sizes = np.array([os.path.getsize(path) for path in tiles['path'] if os.path.exists(path)])
    return spread(sizes / (tiles['height'][0] * tiles['width'][0]))


def chip(peak: float, memory: float) -> dict:
    return {'peak_tflops': peak, 'memory_gib': memory,
            'utilization': {'low': 0.02, 'typical': 0.06, 'high': 0.125},
            'source': 'derived from the number of channels, not measured'}  # fmt: skip


def machine() -> dict:
    text = Path('/proc/cpuinfo').read_text()
    names = ('h01_beam', 'apache-beam', 'tensorflow', 'tensorstore', 'numpy')
    return {
        'processor': re.search(r'model name\s*: (.*)', text)[1], 'cores': os.cpu_count(),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30),
        'python': platform.python_version(),
        'versions': {name: importlib.metadata.version(name) for name in names},
    }  # fmt: skip


def spread(values) -> dict:
    low, typical, high = np.quantile(np.asarray(values, float), [0.1, 0.5, 0.9])
    return ordered(low, typical, high)


def ordered(low: float, typical: float, high: float) -> dict:
    return {name: float(f'{value:.4g}') for name, value in zip(('low', 'typical', 'high'),
                                                              (low, typical, high))}  # fmt: skip


if __name__ == '__main__':
    main()
