"""The network computes what its docstring draws, on every backend, from built-in layers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from scipy import ndimage

from models.ffn.network import build_ffn

# No two axes alike, so that a transposed axis fails.
FOV = (5, 7, 9)


def convolve(net: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(z, y, x, in) * (z, y, x, in, out), zero-padded, as a sum of scipy's correlations."""
    channels = [
        sum(
            ndimage.correlate(net[..., i], kernel[..., i, o], mode='constant')
            for i in range(net.shape[-1])
        )
        for o in range(kernel.shape[-1])
    ]
    return np.stack(channels, -1) + bias


def normalize(net: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    scaled = (net - net.mean(-1, keepdims=True)) / np.sqrt(net.var(-1, keepdims=True) + 1e-6)
    return scaled * weights[0] + weights[1]


def forward(model: keras.Model, sample: np.ndarray, depth: int, layer_norm: bool) -> np.ndarray:
    """The published network in numpy: logits zyx of one sample (z, y, x, 2)."""

    def conv(net, name):
        return convolve(net, *(w.astype(np.float64) for w in model.get_layer(name).get_weights()))

    def norm(net, name):
        return normalize(net, model.get_layer(name).get_weights()) if layer_norm else net

    def relu(net):
        return np.maximum(net, 0)

    net = conv(relu(norm(conv(sample.astype(np.float64), 'conv0_a'), 'norm0')), 'conv0_b')
    for i in range(1, depth):
        update = relu(conv(relu(norm(net, f'norm{i}')), f'conv{i}_a'))
        net = net + conv(update, f'conv{i}_b')
    return sample[..., 1] + conv(relu(norm(net, 'norm_out')), 'logit_update')[..., 0]


def randomize(model: keras.Model, seed: int) -> None:
    random = np.random.default_rng(seed)
    model.set_weights([random.normal(0, 0.2, w.shape) for w in model.get_weights()])


@pytest.mark.parametrize('layer_norm', [False, True])
@pytest.mark.parametrize(('depth', 'kernel'), [(1, (3, 3, 3)), (3, (1, 3, 5))])
def test_network_is_the_published_one(depth, kernel, layer_norm):
    model = build_ffn(FOV, depth, 4, kernel, layer_norm)
    randomize(model, 0)
    batch = np.random.default_rng(1).normal(size=(2, *FOV, 2)).astype(np.float32)
    logits = model.predict_on_batch(batch)
    assert logits.shape == (2, *FOV, 1)
    expected = np.stack([forward(model, sample, depth, layer_norm) for sample in batch])
    np.testing.assert_allclose(logits[..., 0], expected, rtol=1e-4, atol=1e-4)


def test_published_size():
    model = build_ffn((33, 33, 33))
    assert sum('conv' in layer.name for layer in model.layers) == 24
    assert model.count_params() == 3 * 3 * 3 * (2 * 32 + 23 * 32 * 32) + 24 * 32 + 33


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'fov_shape': (33, 33, 32)}, r'fov_shape is \(33, 33, 32\).*odd'),
        ({'fov_shape': (33, 33)}, 'fov_shape is .*three'),
        ({'fov_shape': (33, 33, -1)}, 'fov_shape'),
        ({'fov_shape': FOV, 'kernel_shape': (2, 3, 3)}, 'kernel_shape is .*odd'),
        ({'fov_shape': FOV, 'depth': 0}, 'depth is 0'),
        ({'fov_shape': FOV, 'features': 0}, 'features is 0'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_ffn(**arguments)


def test_file_holds_built_in_layers_with_own_names(tmp_path):
    path = tmp_path / 'ffn.keras'
    build_ffn(FOV, 3, 4, layer_norm=True)  # Takes whatever automatic names there are.
    build_ffn(FOV, 3, 4, layer_norm=True).save(path)
    with zipfile.ZipFile(path) as archive:
        layers = json.loads(archive.read('config.json'))['config']['layers']
    assert {layer['module'] for layer in layers} == {'keras.layers'}
    names = {layer['name'] for layer in layers}
    again = {layer.name for layer in build_ffn(FOV, 3, 4, layer_norm=True).layers}
    assert names == again
    assert {'image_and_logits', 'seed_logits', 'logit_update', 'logits'} <= names


ON_JAX = """
import sys
import keras
import numpy as np
from h01_beam.models import ModelRef
assert keras.backend.backend() == 'jax'
folder = sys.argv[1]
network = ModelRef.resolve(f'{folder}/ffn.keras').load(batch_size=2)
np.save(f'{folder}/jax.npy', network(np.load(f'{folder}/batch.npy')))
"""


@pytest.mark.skipif(importlib.util.find_spec('jax') is None, reason='needs h01_beam[jax]')
def test_same_logits_on_jax(tmp_path, repository):
    from h01_beam.models import ModelCard, save_model

    model = build_ffn(FOV, 2, 4)
    randomize(model, 2)
    card = ModelCard(name='small', fov_shape=FOV, deltas=(1, 1, 1), depth=2, features=4)
    save_model(model, card, str(tmp_path / 'ffn.keras'))
    batch = np.random.default_rng(3).normal(size=(2, *FOV, 2)).astype(np.float32)
    np.save(tmp_path / 'batch.npy', batch)
    subprocess.run(
        [sys.executable, '-c', ON_JAX, str(tmp_path)], check=True, cwd=repository,
        env={**os.environ, 'KERAS_BACKEND': 'jax'},
    )  # fmt: skip
    expected = model.predict_on_batch(batch)[..., 0]
    np.testing.assert_allclose(np.load(tmp_path / 'jax.npy'), expected, atol=1e-4)
