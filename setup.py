"""Packaging of the `h01_beam` library.

Only the library ships: `pipelines` and `models` run from a checkout, and workers need neither.
Ranges here say what the code can work with; `constraints.txt` pins the versions that are tested.
"""

import re
from pathlib import Path

import setuptools

VERSION_FILE = Path(__file__).parent / 'h01_beam' / '__init__.py'
VERSION = re.search(r"__version__ = '(.+)'", VERSION_FILE.read_text(encoding='utf-8'))[1]

# Every licence here is Apache, BSD, MIT, MIT-CMU (pillow), PSF-like (matplotlib) or LGPL (the
# marked ones, used unmodified as separate libraries). GPL libraries belong in an extra.
INSTALL_REQUIRES = [
    'absl-py>=2.1',
    'apache-beam[gcp]>=2.70,<3',
    'connected-components-3d>=4.0,<5',  # LGPL
    'edt>=3.0,<4',  # LGPL
    'fastremap>=1.15,<2',  # LGPL
    'google-cloud-storage>=2.18',
    'h5py>=3.11,<4',
    'imagecodecs>=2025.3.30',
    'keras>=3.8,<4',
    'matplotlib>=3.9,<4',
    'neuroglancer>=2.40,<3',
    'numba>=0.61,<1',
    'numpy>=2.1,<3',
    'opencv-python-headless>=4.10,<6',  # its wheels hold FFmpeg, LGPL
    'pillow>=11.0',
    'pyarrow>=18.0',
    'pyyaml>=6.0,<7',
    'rich>=13.9',
    'scipy>=1.14,<2',
    'tensorflow>=2.20,<3',
    'tensorstore>=0.1.80,<0.2',
    'tifffile>=2025.3.30',
]

EXTRAS_REQUIRE = {
    'test': [
        'gcp-storage-emulator>=2026.1',
        'hypothesis>=6.130,<7',
        'jax>=0.6',
        'mypy>=1.19',
        'pre-commit>=4.0',
        'pytest>=8.3',
        'pytest-timeout>=2.3,<3',
        'pytest-xdist>=3.6,<4',
        'python-hcl2>=7.2',
        'ruff>=0.14',
        'types-pyyaml>=6.0',
    ],
    # GPL: faster alternatives that the library can use but never needs.
    'gpl': ['kimimaro>=5.0', 'tinybrain>=1.5'],
    # The second Keras backend, for TPUs and GPUs.
    'jax': ['jax>=0.6'],
    # The same with the libraries of an accelerator; NVIDIA's are not free software.
    'gpu': ['jax[cuda12]>=0.6'],
    'tpu': ['jax[tpu]>=0.6'],
}

setuptools.setup(
    name='h01_beam',
    version=VERSION,
    description='Reconstruction of serial-section electron microscopy, from tiles to a connectome',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=setuptools.find_packages(include=['h01_beam', 'h01_beam.*']),
    package_data={'h01_beam': ['py.typed', '**/*.html']},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
