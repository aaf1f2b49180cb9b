"""A flood-filling network whose weights are written by hand: it floods what is bright.

With it the whole pipeline runs in tests on a real `.keras` file, without training. Features:

    0  `inside`: how much of the object has reached this voxel
    1  `bright`: how bright the 3 x 3 x 3 surroundings are, 0 in membranes
    2, 3  scratch

Every residual module dilates the object by a voxel and cuts it where it is not bright:
`inside = min(bright, sum of inside over 3 x 3 x 3) = bright - relu(bright - sum)`.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from h01_beam.models import ModelCard, save_model
from models.ffn.network import build_ffn

FOV, DELTAS, DEPTH = (5, 9, 9), (2, 4, 4), 6


def bright_ffn(threshold: float = -0.4, voxel_size_nm=None) -> tuple[keras.Model, ModelCard]:
    """The network and its card; `threshold` is the normalized grey of a membrane's flank."""
    model = build_ffn(FOV, depth=DEPTH, features=4)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    box = np.ones((3, 3, 3), np.float32)
    kernel, bias = model.get_layer('conv0_a').get_weights()
    kernel[1, 1, 1, 1, 0], bias[0] = 1.0, 1.0  # Seed logits above -1 count as inside.
    kernel[..., 0, 1], bias[1] = box / 27, -threshold
    model.get_layer('conv0_a').set_weights([kernel, bias])
    kernel, bias = model.get_layer('conv0_b').get_weights()
    kernel[1, 1, 1, 0, 0] = kernel[1, 1, 1, 1, 1] = 1.0
    model.get_layer('conv0_b').set_weights([kernel, bias])
    for i in range(1, DEPTH):
        kernel, bias = model.get_layer(f'conv{i}_a').get_weights()
        kernel[..., 0, 0] = -box  # 0: bright - sum of inside
        kernel[1, 1, 1, 1, 0] = 1.0
        kernel[1, 1, 1, 1, 1] = 1.0  # 1: bright
        kernel[1, 1, 1, 0, 2] = 1.0  # 2: inside
        model.get_layer(f'conv{i}_a').set_weights([kernel, bias])
        kernel, bias = model.get_layer(f'conv{i}_b').get_weights()
        kernel[1, 1, 1, 0, 0], kernel[1, 1, 1, 1, 0], kernel[1, 1, 1, 2, 0] = -1.0, 1.0, -1.0
        model.get_layer(f'conv{i}_b').set_weights([kernel, bias])
    kernel, bias = model.get_layer('logit_update').get_weights()
    kernel[0, 0, 0, 0, 0], bias[0] = 40.0, -3.0
    model.get_layer('logit_update').set_weights([kernel, bias])
    card = ModelCard(
        name='bright', fov_shape=FOV, deltas=DELTAS, voxel_size_nm=voxel_size_nm,
        image_mean=128.0, image_stddev=33.0, depth=DEPTH, features=4, layer_norm=False,
        recipe={'made': 'by hand'}, scores={},
    )  # fmt: skip
    return model, card


def write_bright_ffn(path: Path, **kwargs) -> str:
    model, card = bright_ffn(**kwargs)
    save_model(model, card, str(path))
    return str(path)
