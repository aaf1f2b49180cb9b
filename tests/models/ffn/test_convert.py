"""Published checkpoints convert to networks with the same logits; anything else is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from h01_beam.models import ModelRef
from models.ffn import convert

FIB25 = 'fib25/google_ffn_checkpoint/model.ckpt-27465036'
FOV = (5, 7, 9)


def variables(depth: int = 3, features: int = 4, kernel=(3, 3, 3)) -> dict[str, np.ndarray]:
    """Names and shapes of the variables of a google/ffn checkpoint, with random values."""
    random = np.random.default_rng(0)
    shapes = {'conv0_a': (*kernel, 2, features), 'conv_lom': (1, 1, 1, features, 1)}
    for name in [f'conv{i}_{half}' for i in range(depth) for half in 'ab'][1:]:
        shapes[name] = (*kernel, features, features)
    result = {}
    for name, shape in shapes.items():
        result[f'seed_update/{name}/weights'] = random.normal(0, 0.2, shape).astype(np.float32)
        result[f'seed_update/{name}/biases'] = random.normal(0, 0.2, shape[-1]).astype(np.float32)
    return result


def write_checkpoint(prefix, tensors: dict[str, np.ndarray]) -> str:
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[''] * len(tensors),
        tensors=list(tensors.values()),
    )
    return str(prefix)


def evaluate_checkpoint(prefix: str, batch: np.ndarray) -> np.ndarray:
    """The logits of a google/ffn checkpoint, by TensorFlow 1's graph and operations."""
    reader = tf.train.load_checkpoint(prefix)

    def conv(net, name):
        weights, biases = (
            reader.get_tensor(f'seed_update/{name}/{kind}') for kind in ('weights', 'biases')
        )
        return tf.nn.bias_add(tf.nn.conv3d(net, weights, [1] * 5, 'SAME'), biases)

    depth = sum(name.endswith('_a/weights') for name in reader.get_variable_to_shape_map())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs = tf.compat.v1.placeholder(tf.float32, batch.shape)
        net = conv(tf.nn.relu(conv(inputs, 'conv0_a')), 'conv0_b')
        for i in range(1, depth):
            net += conv(tf.nn.relu(conv(tf.nn.relu(net), f'conv{i}_a')), f'conv{i}_b')
        logits = inputs[..., 1:] + conv(tf.nn.relu(net), 'conv_lom')
        return session.run(logits, {inputs: batch})[..., 0]


@pytest.fixture(scope='module')
def fib25(shared_data, tmp_path_factory) -> tuple[str, ModelRef]:
    checkpoint = str(shared_data / FIB25)
    output = str(tmp_path_factory.mktemp('converted') / 'fib25.keras')
    fov = (33, 33, 33)
    return checkpoint, convert.convert(checkpoint, output, fov_shape=fov, deltas=(8, 8, 8))


def test_published_checkpoint_keeps_its_logits(fib25, shared_data):
    checkpoint, ref = fib25
    assert (ref.card.depth, ref.card.features) == (12, 32)
    assert ref.card.recipe['global_step'] == 27465036
    with np.load(shared_data / 'fib25' / 'fib25_z0-170.npz') as data:
        fov = data['image'][40:73, 100:133, 60:93]
    batch = np.full((1, 33, 33, 33, 2), np.log(0.05 / 0.95), np.float32)
    batch[0, ..., 0] = (fov.astype(np.float32) - 128) / 33
    batch[0, 16, 16, 16, 1] = np.log(0.95 / 0.05)
    expected = evaluate_checkpoint(checkpoint, batch)
    assert expected.std() > 1  # The network says something about this place.
    np.testing.assert_allclose(ref.load()(batch), expected, atol=1e-4)
    plain = keras.models.load_model(ref.uri, safe_mode=True)
    np.testing.assert_allclose(plain.predict_on_batch(batch)[..., 0], expected, atol=1e-4)


@pytest.mark.parametrize('kernel', [(3, 3, 3), (1, 3, 5)])
def test_architecture_is_read_off_the_checkpoint(tmp_path, kernel):
    slots = {'seed_update/conv1_a/weights/Momentum': np.zeros(3, np.float32)}
    counters = {'filter/fraction': np.zeros(2, np.int64), 'global_step': np.int32(7)}
    tensors = {**variables(depth=3, features=6, kernel=kernel), **slots, **counters}
    prefix = write_checkpoint(tmp_path / 'model.ckpt-7', tensors)
    ref = convert.convert(
        prefix, str(tmp_path / 'a.keras'), fov_shape=FOV, deltas=(1, 2, 3),
        voxel_size_nm=(30, 8, 8), image_mean=100, image_stddev=20,
    )  # fmt: skip
    assert (ref.card.depth, ref.card.features, ref.card.fov_shape) == (3, 6, FOV)
    assert (ref.card.image_mean, ref.card.image_stddev) == (100, 20)
    assert ref.card.voxel_size_nm == (30, 8, 8)
    batch = np.random.default_rng(1).normal(size=(1, *FOV, 2)).astype(np.float32)
    np.testing.assert_allclose(ref.load()(batch), evaluate_checkpoint(prefix, batch), atol=1e-4)
    again = convert.convert(
        prefix, str(tmp_path / 'b.keras'), fov_shape=FOV, deltas=(1, 2, 3),
        voxel_size_nm=(30, 8, 8), image_mean=100, image_stddev=20,
    )  # fmt: skip
    assert again.sha256 == ref.sha256


def replaced(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """`variables()` with some set, or removed where None; __ stands for the slash."""
    result = variables()
    for name, value in changes.items():
        name = 'seed_update/' + name.replace('__', '/')
        if value is None:
            del result[name]
        else:
            result[name] = np.asarray(value, np.float32)
    return result


@pytest.mark.parametrize(
    ('tensors', 'message'),
    [
        ({'resnet/conv1/kernel': np.zeros(3)}, 'no variable seed_update/conv0_a.*resnet/conv1'),
        (replaced(conv1_b__weights=None), "'seed_update/conv1_b/weights' is missing.*another arch"),
        (replaced(conv_lom__biases=None), "'seed_update/conv_lom/biases' is missing"),
        (replaced(conv0_a__weights=None), "'seed_update/conv0_a/weights' has shape none"),
        (replaced(norm1__gamma=[1]), "'seed_update/norm1/gamma' is unknown.*another architecture"),
        (
            replaced(conv0_a__weights=np.zeros((3, 3, 2, 4))),
            r"'seed_update/conv0_a/weights' has shape \(3, 3, 2, 4\).*3-d kernel",
        ),
        (
            replaced(conv2_a__weights=np.zeros((3, 3, 3, 4, 8))),
            r"'seed_update/conv2_a/weights' has shape \(3, 3, 3, 4, 8\) \(must be \(3, 3, 3, 4, 4",
        ),
        (
            replaced(conv1_a__biases=[1, 2, np.nan, 3]),
            "'seed_update/conv1_a/biases' .*must be finite",
        ),
    ],
)
def test_other_checkpoints_are_refused_by_variable(tmp_path, tensors, message):
    prefix = write_checkpoint(tmp_path / 'model.ckpt', tensors)
    with pytest.raises(ValueError, match=message):
        convert.convert(prefix, str(tmp_path / 'a.keras'), fov_shape=FOV, deltas=(1, 1, 1))
    assert not (tmp_path / 'a.keras').exists()


def test_missing_and_damaged_checkpoints(tmp_path):
    prefix = write_checkpoint(tmp_path / 'model.ckpt-1', variables())
    for wrong in ('nothing', str(tmp_path), prefix + '.index'):
        with pytest.raises(FileNotFoundError, match='there is no .*index') as caught:
            convert.read_checkpoint(wrong)
        assert wrong in str(caught.value)
    assert 'found ' + prefix in str(caught.value)
    (tmp_path / 'bad.index').write_bytes(b'no table')
    with pytest.raises(ValueError, match='bad.* cannot be read'):
        convert.read_checkpoint(str(tmp_path / 'bad'))
    (tmp_path / 'model.ckpt-1.data-00000-of-00001').unlink()
    with pytest.raises(ValueError, match='cannot be read'):
        convert.read_checkpoint(prefix)


def run(repository, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != 'TF_CPP_MIN_LOG_LEVEL'}
    return subprocess.run(
        [sys.executable, '-m', 'models.ffn.convert', *arguments],
        cwd=repository, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_command_line_takes_xyz_and_writes_zyx(tmp_path, repository):
    prefix = write_checkpoint(tmp_path / 'model.ckpt-1', variables())
    output = str(tmp_path / 'out' / 'ffn.keras')
    result = run(
        repository, '--checkpoint', prefix, '--output', output, '--fov_size', '9,7,5',
        '--deltas', '3,2,1', '--voxel_size_nm', '30,8,4', '--image_mean', '120',
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, '')
    ref = ModelRef.resolve(output)
    assert (ref.card.fov_shape, ref.card.deltas) == ((5, 7, 9), (1, 2, 3))
    assert (ref.card.voxel_size_nm, ref.card.image_mean) == ((30, 8, 4), 120)
    assert ref.sha256 in result.stdout


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['--checkpoint', 'gone'], 2, "error: checkpoint is 'gone'"),
        (['--checkpoint', 'gone', '--delta', '8,8,8'], 2, "flag 'delta'"),
    ],
)
def test_command_line_errors_are_one_message(tmp_path, repository, arguments, code, message):
    result = run(repository, '--output', str(tmp_path / 'ffn.keras'), *arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert 'Traceback' not in result.stderr
