"""The networks that ship: what their cards say of them holds."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from h01_beam.config import from_dict, load
from h01_beam.evaluation.contingency import count_overlaps
from h01_beam.evaluation.scores import score_overlaps
from h01_beam.geometry import BoundingBox
from h01_beam.models import ModelRef
from h01_beam.segmentation.ffn import FfnConfig, flood_fill
from h01_beam.testing.phantom import PhantomConfig, make_phantom
from models.ffn.train_config import TrainConfig

FOLDER = Path(__file__).parents[3] / 'models' / 'ffn'
WEIGHTS = sorted((FOLDER / 'weights').glob('*.keras'))


def test_there_are_networks():
    assert WEIGHTS


@pytest.mark.parametrize('path', WEIGHTS, ids=lambda path: path.stem)
def test_the_card_is_that_of_the_file(path):
    card = json.loads(path.with_suffix('.card.json').read_text())
    assert card['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
    ref = ModelRef.resolve(str(path))
    assert ref.card.name == path.stem and ref.file_bytes < 2 * 2**20
    for told in ('config', 'data', 'held_out', 'steps', 'seconds', 'backend', 'device'):
        assert ref.card.recipe[told]
    assert ref.card.scores['objective'] > 0
    # One command makes it again.
    recipe = from_dict(TrainConfig, load(str(FOLDER / f'configs/{path.stem}.yaml'), []))
    assert recipe == from_dict(TrainConfig, ref.card.recipe['config'])


@pytest.mark.slow
@pytest.mark.parametrize('path', WEIGHTS, ids=lambda path: path.stem)
def test_it_segments_tissue_it_never_saw(path):
    ref = ModelRef.resolve(str(path))
    size = ref.card.voxel_size_nm
    tissue = make_phantom(
        PhantomConfig(voxel_size_nm=size, seed=31), BoundingBox((0, 0, 0), (20, 96, 96))
    )
    network = ref.load(threads=0)
    batch = np.empty((1, *ref.card.input_shape), np.float32)

    def predict(image_fov, logit_fov):
        batch[0, ..., 0], batch[0, ..., 1] = image_fov, logit_fov
        return network(batch)[0]

    config = FfnConfig(min_segment_size=200, border='reflect').for_model(ref.card)
    labels = flood_fill(tissue.image, predict, ref.card.fov_shape, ref.card.deltas, config).labels
    scores = score_overlaps(count_overlaps(labels, tissue.neuron)).foreground
    assert scores.coverage > 0.8
    assert scores.voi_split + scores.voi_merge < 1.0
