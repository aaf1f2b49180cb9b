"""Fields of view per second: the bare network, and the whole engine around it, in one run.

    python -m tests.benchmarks.ffn_inference --model fib25.keras --image 'em.npz|npz:image'

Every row measures the bare network, then the engine, then the bare network again, in as many
worker processes at once as there are cores, one thread each: the way a run uses a machine. The
engine floods the image from its own seeds with two canvases per slot of a batch; `engine` counts
its FOV steps from the first to the last, `of bare` is its ratio to the mean of the bare network.
Seeds are computed once per block before that; their seconds are printed for scale.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
import time
from typing import Any

import numpy as np

from h01_beam.geometry import BoundingBox
from h01_beam.models import ModelRef, Network
from h01_beam.segmentation import seeds
from h01_beam.segmentation.executor import BatchExecutor
from h01_beam.segmentation.ffn import FfnConfig, flood_fill
from h01_beam.testing.tubes import make_tubes
from h01_beam.volume import Volume

BATCHES = (1, 4, 8)
PRECISIONS = ('float32', 'bfloat16')


class _TimeIsUpError(Exception):
    pass


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument('--model', required=True, help='.keras file')
    flags.add_argument('--image', help='volume URI of a uint8 image; default: synthetic tissue')
    flags.add_argument('--size', type=int, default=120, help='edge of the block that is flooded')
    flags.add_argument('--seconds', type=float, default=15, help='per measurement')
    flags.add_argument('--processes', type=int, default=os.cpu_count())
    flags.add_argument('--batches', type=int, nargs='+', default=BATCHES)
    flags.add_argument('--precisions', nargs='+', default=PRECISIONS, choices=PRECISIONS)
    args = flags.parse_args()
    card = ModelRef.resolve(args.model).card
    print(f'{card.name}: FOV {card.fov_shape}, depth {card.depth}, {card.features} features; '
          f'{args.processes} processes of 1 thread')  # fmt: skip
    print(
        f'{"precision":<10} {"batch":>5} {"bare/s":>8} {"engine/s":>9} {"of bare":>8} {"seeds s":>8}'
    )
    for precision in args.precisions:
        for batch_size in args.batches:
            bare, engine, seed_s = _measure_everywhere(args, precision, batch_size)
            print(f'{precision:<10} {batch_size:>5} {bare:>8.2f} {engine:>9.2f} '
                  f'{100 * engine / bare:>6.1f} % {seed_s:>8.2f}', flush=True)  # fmt: skip


def _measure_everywhere(
    args: argparse.Namespace, precision: str, batch_size: int
) -> tuple[float, float, float]:
    """Sums over processes that measure at the same time."""
    context = multiprocessing.get_context('spawn')  # TensorStore does not survive a fork.
    barrier, results = context.Barrier(args.processes), context.Queue()
    workers = [
        context.Process(target=_measure, args=(args, precision, batch_size, i, barrier, results))
        for i in range(args.processes)
    ]
    for worker in workers:
        worker.start()
    rows = [results.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    return sum(r[0] for r in rows), sum(r[1] for r in rows), float(np.mean([r[2] for r in rows]))


def _measure(
    args: argparse.Namespace,
    precision: str,
    batch_size: int,
    number: int,
    barrier: Any,
    results: Any,
) -> None:
    reference = ModelRef.resolve(args.model)
    network = reference.load(precision=precision, batch_size=batch_size, threads=1)
    image = _block(args, number)
    barrier.wait()
    before = _bare(network, args.seconds / 2)
    barrier.wait()
    engine, seed_s = _engine(network, reference, image, args.seconds)
    barrier.wait()
    after = _bare(network, args.seconds / 2)
    results.put(((before + after) / 2, engine, seed_s))


def _block(args: argparse.Namespace, number: int) -> np.ndarray:
    """A cube for each process, another one if the image has room for it."""
    if not args.image:
        shape = (args.size,) * 3
        return make_tubes(shape, seed=number)[0]
    volume = Volume.open(args.image)
    shape = tuple(min(args.size, n) for n in volume.spec.shape)
    room = volume.spec.shape[2] - shape[2]
    start = list(volume.spec.start)
    start[2] += min(room, number * args.size)
    return volume.read(BoundingBox(tuple(start), shape))


def _bare(network: Network, seconds: float) -> float:
    shape = (network.batch_size, *network.fov_shape, 2)
    batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        network(batch)
        calls += 1
    return calls * network.batch_size / (time.perf_counter() - started)


def _engine(
    network: Network, reference: ModelRef, image: np.ndarray, seconds: float
) -> tuple[float, float]:
    """FOV steps per second over all canvases, and the seconds that the seeds took."""
    started = time.perf_counter()
    points = seeds.propose_seeds(image, 'peaks')
    seed_s = time.perf_counter() - started
    config, card = FfnConfig(), reference.card
    ended: list[float] = []  # When each call of the network returned.

    def timed(batch: np.ndarray) -> np.ndarray:
        logits = network(batch)
        ended.append(time.perf_counter())
        return logits

    begin = time.perf_counter()

    def flood(canvas: int) -> None:
        # Canvases start at different seeds, so that they do different work.
        own = np.roll(points, -canvas * len(points) // (2 * network.batch_size), axis=0)
        with executor.client() as predict:

            def until_time_is_up(*fovs: np.ndarray) -> np.ndarray:
                if time.perf_counter() - begin > seconds:
                    raise _TimeIsUpError
                return predict(*fovs)

            try:
                while True:
                    flood_fill(
                        image,
                        until_time_is_up,
                        card.fov_shape,
                        card.deltas,
                        config,
                        seed_points=own,
                    )
            except _TimeIsUpError:
                pass

    with BatchExecutor(timed, network.batch_size, card.fov_shape) as executor:
        threads = [threading.Thread(target=flood, args=(i,)) for i in range(2 * network.batch_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # From the first answer to the last one in time, so that neither the start nor the batches
    # that nobody waits for any more count. All of these batches were full.
    inside = [end for end in ended if end <= begin + seconds]
    return (len(inside) - 1) * network.batch_size / (inside[-1] - inside[0]), seed_s


if __name__ == '__main__':
    main()
