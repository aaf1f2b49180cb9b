r"""What the phantom is like: its statistics beside published ones, and beside a real image.

    python tests/benchmarks/phantom.py --output phantom_statistics \
        --real 'em.npz|npz:image' --real_voxel_size_nm 30,6,6

Prints a table and writes statistics.png (grey levels and power spectra) and crops.png (phantom above
the real image, if one is given; it is not kept anywhere else).
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from h01_beam.geometry import BoundingBox
from h01_beam.testing.phantom import Phantom, PhantomConfig, make_phantom
from h01_beam.testing.phantom.truth import truth_tables
from h01_beam.testing.phantom.weave import AXON, DENDRITE, GLIA
from h01_beam.volume import Volume

SHAPE = (32, 320, 320)
SEEDS = tuple(range(50, 58))
# Neuropil of mouse cortex. Volumes: Braitenberg and Schuez, Cortex: Statistics and Geometry of
# Neuronal Connectivity, 1998 (BioNumbers 106133), without cell bodies and vessels: axons 29.3,
# dendrites 30.2, spines 12.1, glia 9.5, extracellular space 5.2 % of the cortex. Lengths, widths and
# synapses: the same book, after Faisal et al., Curr. Biol. 15 (2005) (BioNumbers 109245).
PUBLISHED = {
    'axons, % of neuropil': 34.0,
    'dendrites and spines, % of neuropil': 49.0,
    'glia, % of neuropil': 11.0,
    'extracellular space, % of neuropil': 6.0,
    'axon length, um/um3': 4.0,
    'axon diameter, um': 0.3,
    'synapses, 1/um3': 0.7,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, default=Path('phantom_statistics'))
    parser.add_argument('--real', help='URI of a real uint8 image')
    parser.add_argument('--real_voxel_size_nm', default='30,6,6')
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    size = tuple(float(v) for v in args.real_voxel_size_nm.split(','))
    print_table()
    config = PhantomConfig(voxel_size_nm=size, seed=7)
    image = make_phantom(config, BoundingBox((0, 0, 0), (4, 512, 1024))).image
    real = None
    if args.real:
        volume = Volume.open(args.real)
        real = volume.read(BoundingBox(volume.spec.start, (4, 512, 1024)))
    (args.output / 'statistics.png').write_bytes(draw_statistics(image, real, size[1]))
    rows = [image[1]] if real is None else [image[1], real[1]]
    Image.fromarray(np.concatenate(rows)).save(args.output / 'crops.png')
    print(f'wrote {args.output}/statistics.png and crops.png')


def print_table() -> None:
    measured = [measure(seed) for seed in SEEDS]
    print(f'{len(SEEDS)} boxes of {SHAPE} voxels of 30 x 16 x 16 nm, difficulty 0.3')
    print(f'{"":<38}{"phantom":>18}{"published":>12}')
    for name in measured[0]:
        values = np.array([m[name] for m in measured])
        published = f'{PUBLISHED[name]:>12.2f}' if name in PUBLISHED else ''
        print(f'{name:<38}{values.mean():>10.2f} +- {values.std():<5.2f}{published}')


def measure(seed: int) -> dict[str, float]:
    """Statistics of one box."""
    config = PhantomConfig(voxel_size_nm=(30, 16, 16), seed=seed)
    phantom = make_phantom(config, BoundingBox((0, 0, 0), SHAPE))
    um3 = phantom.box.size * 30 * 16 * 16 * 1e-9
    rows = truth_tables(phantom, config.voxel_size_nm)
    neurites = rows['neurites']
    axons = neurites['kind'] == 'axon'
    length = neurites['length_nm'][axons]
    parts = {kind: (phantom.structure == kind).mean() for kind in range(9)}
    neuropil = parts[0] + parts[AXON] + parts[DENDRITE] + parts[GLIA]
    return {
        'axons, % of neuropil': 100 * parts[AXON] / neuropil,
        'dendrites and spines, % of neuropil': 100 * parts[DENDRITE] / neuropil,
        'glia, % of neuropil': 100 * parts[GLIA] / neuropil,
        'extracellular space, % of neuropil': 100 * parts[0] / neuropil,
        'membranes, % of all': 100 * parts[8],
        'somata, vessels and myelin, % of all': 100 * (parts[5] + parts[6] + parts[7]),
        'axon length, um/um3': length.sum() / 1e3 / um3,
        'axon diameter, um': diameter_um(phantom, length.sum()),
        'synapses, 1/um3': len(rows['synapses']['pre']) / um3,
        'of them excitatory, %': 100 * rows['synapses']['excitatory'].mean(),
        'of them on spines, %': 100 * rows['synapses']['on_spine'].mean(),
        'mitochondria, % of all': 100 * (phantom.organelle == 1).mean(),
        'vesicles, % of all': 100 * (phantom.organelle == 2).mean(),
    }


def diameter_um(phantom: Phantom, length_nm: float) -> float:
    """Of the cylinder with the length and the volume of all axons."""
    volume = (phantom.structure == AXON).sum() * 30 * 16 * 16
    return float(2 * np.sqrt(volume / (np.pi * length_nm)) / 1e3)


def draw_statistics(image: np.ndarray, real: np.ndarray | None, pixel_nm: float) -> bytes:
    figure = Figure(figsize=(10.8, 3.4), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, data, colour in (('phantom', image, '#3d6fb4'), ('real', real, '#c4622d')):
        if data is None:
            continue
        counts = np.bincount(data.ravel(), minlength=256) / data.size
        label = f'{name}: {data.mean():.0f} +- {data.std():.0f}'
        left.plot(np.convolve(counts, np.ones(5) / 5, 'same') * 100, color=colour, label=label)
        frequency, power = spectrum(data)
        right.loglog(frequency / pixel_nm * 1e3, power / data.var(), color=colour, label=name)
    left.set_title('Grey levels, % of the pixels', loc='left', fontsize=11)
    right.set_title('Power of variance 1, by cycles per um', loc='left', fontsize=11)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9)
        axes.grid(color='#dde2ea', lw=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()


def spectrum(image: np.ndarray, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Radially averaged power of tiles of all sections; cycles per pixel and power."""
    window = np.hanning(size)[:, None] * np.hanning(size)
    total = np.zeros((size, size))
    for section in image.astype(float):
        for y in range(0, section.shape[0] - size + 1, size):
            for x in range(0, section.shape[1] - size + 1, size):
                tile = section[y : y + size, x : x + size]
                total += np.abs(np.fft.fft2((tile - tile.mean()) * window)) ** 2
    along = np.fft.fftfreq(size)
    radius = np.hypot(along[:, None], along)
    edges = np.geomspace(1 / size, 0.5, 25)
    which = np.digitize(radius.ravel(), edges)
    sums = np.bincount(which, total.ravel(), minlength=26)[1:25]
    counts = np.bincount(which, minlength=26)[1:25]
    norm = (window**2).sum() * len(image) * (image.shape[1] // size) * (image.shape[2] // size)
    full = counts > 0
    return np.sqrt(edges[:-1] * edges[1:])[full], sums[full] / counts[full] / norm


if __name__ == '__main__':
    main()
