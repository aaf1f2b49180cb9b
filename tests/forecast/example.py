"""A small data set, and rates and prices with round numbers."""

from __future__ import annotations

from pathlib import Path

from h01_beam.forecast.dataset import DataSet, Fleet, Job, Tiles
from h01_beam.forecast.prices import Prices, StorageClass
from h01_beam.forecast.rates import UNITS, Accelerator, Range, Rate, Rates
from h01_beam.forecast.work import exactly

CONFIGS = Path(__file__).resolve().parents[2] / 'pipelines/configs'
MODEL = Path(__file__).resolve().parents[2] / 'models/ffn/weights/phantom_30x8x8.keras'
SPEED = Range(low=50.0, typical=100.0, high=200.0)

DATASET = DataSet(
    name='small', shape=(64, 512, 512), voxel_size_nm=(30.0, 8.0, 8.0), bytes=64 * 512 * 256,
    tiles=Tiles(count=64 * 9, shape=(128, 160)), chunk=(16, 64, 64),
)  # fmt: skip
FLEET = Fleet(
    workers=4, vcpus=8, memory_gib=32.0, quota_vcpus=100, read_gbps=8.0, write_gbps=8.0,
    reads_per_s=1000.0, writes_per_s=100.0,
)  # fmt: skip
RATES = Rates(
    measured='2026-01-01',
    machine={'processor': 'one'},
    stages={name: Rate(unit=unit, per_second=SPEED, blocks=1) for name, unit in UNITS.items()},
    flood_gflops={'float32': exactly(100.0)},
    host_steps=exactly(300.0),
    steps_per_voxel=Range(low=0.0005, typical=0.001, high=0.002),
    overhead_seconds=exactly(0.01),
    stored_fraction={'uint8': exactly(1.0), 'uint64': exactly(0.05), 'float32': exactly(1.0)},
    tile_bytes_per_pixel=exactly(0.5),
    accelerators={
        'chip': Accelerator(
            peak_tflops=100.0, utilization=exactly(0.1), memory_gib=16.0, source='made up'
        )
    },
)
PRICES = Prices(
    as_of='2026-01', region='nowhere', sources=('a page',), vcpu_hour=0.05, memory_gib_hour=0.005,
    shuffle_gib=0.01, accelerator_hour={'chip': 2.0},
    storage={'standard': StorageClass(gib_month=0.02, class_a_1000=0.005, class_b_1000=0.0004),
             'cold': StorageClass(gib_month=0.01, retrieval_gib=0.1, class_a_1000=0.01,
                                  class_b_1000=0.001)},
)  # fmt: skip


def segment_job(**changes) -> Job:
    settings = (
        f'model={MODEL}', 'grid.block_shape=[32, 128, 128]', 'grid.halo=[6, 18, 18]',
        'output.chunk=[16, 64, 64]', 'ffn.seed_voxel_size_nm=[30, 8, 8]',
    )  # fmt: skip
    job = {'job': 'segment', 'config': str(CONFIGS / 'demo.yaml'), 'set': settings}
    return Job(**{**job, **changes})


def align_job() -> Job:
    return Job(job='align', config=str(CONFIGS / 'align.yaml'))
