"""Training on both of Keras' backends: a process has one, so each is asked in its own."""

import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import sys
import numpy as np
from h01_beam.models import import_keras, save_model, load_keras
from h01_beam.model_file import ModelCard
from models.ffn.network import build_ffn
from models.ffn.stepper import make_stepper
from models.ffn.train_config import OptimizerConfig

folder = sys.argv[1]
keras = import_keras(1)
model = load_keras(folder + '/start.keras', keras)
data = np.load(folder + '/batch.npz')
settings = OptimizerConfig(learning_rate=0.003, final_learning_rate=0.003, warmup_steps=0)
stepper = make_stepper(model, settings, 100)
losses, logits = [], []
for _ in range(12):
    loss, answer = stepper.step(data['inputs'], data['targets'])
    losses.append(loss)
    logits.append(answer)
state = stepper.state()
stepper.restore(state)
after, _ = stepper.step(data['inputs'], data['targets'])
weights = stepper.sync().get_weights()
np.savez(folder + '/' + keras.backend.backend() + '.npz', losses=losses + [after],
         first=logits[0], last=logits[-1], weights=np.concatenate([w.ravel() for w in weights]))
"""


def run(backend, folder):
    environment = {**os.environ, 'KERAS_BACKEND': backend, 'JAX_PLATFORMS': 'cpu'}
    result = subprocess.run(
        [sys.executable, '-c', SCRIPT, str(folder)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    with np.load(folder / f'{backend}.npz', allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


@pytest.mark.slow
def test_tensorflow_and_jax_agree_and_both_learn(tmp_path):
    pytest.importorskip('jax', reason='the second backend: pip install jax')
    from h01_beam.model_file import ModelCard
    from h01_beam.models import import_keras, save_model
    from models.ffn.network import build_ffn

    import_keras(1).utils.set_random_seed(4)
    fov = (5, 13, 13)
    card = ModelCard(name='start', fov_shape=fov, deltas=(1, 4, 4), depth=4, features=16)
    save_model(build_ffn(fov, depth=4, features=16), card, str(tmp_path / 'start.keras'))
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, *fov, 2), np.float32)
    targets = np.where(inputs[..., :1] > 0, 0.95, 0.05).astype(np.float32)
    np.savez(tmp_path / 'batch.npz', inputs=inputs, targets=targets)
    one, two = run('tensorflow', tmp_path), run('jax', tmp_path)
    assert np.abs(one['first'] - two['first']).max() < 1e-3
    for found in (one, two):
        assert found['losses'][-1] < 0.8 * found['losses'][0]
    # After twelve steps rounding has grown, but the two are on the same way.
    np.testing.assert_allclose(one['losses'], two['losses'], rtol=0.02)
