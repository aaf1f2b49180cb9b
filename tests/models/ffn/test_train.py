"""Training as a user starts it: it learns, resumes to the bit, and says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from h01_beam.config import from_dict, load
from h01_beam.models import ModelRef, import_keras
from models.ffn.network import build_ffn
from models.ffn.stepper import learning_rates, make_stepper
from models.ffn.train import main, parse, train
from models.ffn.train_config import OptimizerConfig, TrainConfig

CONFIGS = sorted((Path(__file__).parents[3] / 'models/ffn/configs').glob('*.yaml'))


def tiny(**changes):
    values = {
        'name': 'tiny',
        'network': {
            'fov_shape': [3, 9, 9], 'deltas': [1, 3, 3], 'depth': 2, 'features': 8,
            'voxel_size_nm': [30, 32, 32], 'image_mean': 137, 'image_stddev': 57,
        },
        'data': [{'phantom': {'seeds': [1], 'shape': [10, 48, 48]}}],
        'validation': {
            'every_rounds': 2,
            'sources': [{'phantom': {'seeds': [2], 'shape': [6, 24, 24]}}],
            'ffn': {'min_segment_size': 20},
            'max_steps': 200,
        },
        'sampling': {'candidates': 300, 'max_moves': 4},
        'optimizer': {'warmup_steps': 10},
        'rounds': 4,
        'round_steps': 20,
        'batch_size': 4,
        'threads': 1,
    }  # fmt: skip
    return {**values, **changes}


def losses(output):
    return [record['loss'] for record in json.loads((Path(output) / 'curve.json').read_text())]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp('trained')
    return output, train(from_dict(TrainConfig, tiny()), str(output))


def test_it_learns_and_leaves_a_network_with_its_card(trained):
    output, ref = trained
    curve = losses(output)
    assert len(curve) == 4 and curve[-1] < curve[0]
    records = json.loads((output / 'curve.json').read_text())
    assert 0.5 < records[-1]['f1'] < 1 and records[-1]['f1'] > records[0]['f1']
    card = ModelRef.resolve(f'{output}/model.keras').card
    assert card == ref.card
    assert card.fov_shape == (3, 9, 9) and card.voxel_size_nm == (30, 32, 32)
    assert card.recipe['steps'] == 80 and card.recipe['fields_of_view'] == 320
    assert card.recipe['config']['seed'] == 0 and card.recipe['data'] == ['phantom 1 (0.3)']
    assert 'objective' in card.scores
    assert (output / 'curves.png').read_bytes()[:4] == b'\x89PNG'
    ref.load(threads=1)(np.zeros((1, 3, 9, 9, 2), np.float32))


def test_it_goes_on_to_the_same_end(trained, tmp_path):
    output, ref = trained
    config = from_dict(TrainConfig, tiny())
    # Stopped in the middle of the third round, as by a kill: nothing of it is kept.
    import models.ffn.train as script

    steps = 0
    original = script.MovingFov.put_back

    def stop(self, logits):
        nonlocal steps
        steps += 1
        if steps == 50:
            raise KeyboardInterrupt
        original(self, logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.MovingFov, 'put_back', stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, str(tmp_path))
    assert len(losses(tmp_path)) == 2
    again = train(config, str(tmp_path))
    assert losses(tmp_path) == losses(output)
    first, second = (
        import_keras(1).models.load_model(f'{path}/model.keras', compile=False)
        for path in (output, tmp_path)
    )
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.card.scores == ref.card.scores


def test_the_best_network_is_kept_with_a_card_of_its_own(monkeypatch, tmp_path):
    """Not the last one, and not the best's weights with what the last went through."""
    import models.ffn.train as script

    objectives = iter([2.0, 1.0, None, 3.0])
    tissue = {'voi_split': 0.5, 'voi_merge': 0.5, 'coverage': 0.5}

    def validate(*_):
        return {'objective': next(objectives), 'tissues': [tissue]}

    monkeypatch.setattr(script, 'validate', validate)
    validation = {**tiny()['validation'], 'every_rounds': 1}
    config = from_dict(TrainConfig, tiny(validation=validation, round_steps=5))
    ref = train(config, str(tmp_path))
    assert ref.card.scores['objective'] == 1.0
    assert ref.card.recipe['steps'] == 10 and ref.card.recipe['fields_of_view'] == 40
    last = ModelRef.resolve(f'{tmp_path}/candidate.keras')
    assert last.card.recipe['steps'] == 20
    keras = import_keras(1)
    best, later = (keras.models.load_model(r.uri, compile=False).get_weights() for r in (ref, last))
    assert any((a != b).any() for a, b in zip(best, later, strict=True))


def test_a_training_that_diverges_says_so(monkeypatch, tmp_path, capsys):
    import models.ffn.train as script

    def diverge(*_):
        raise FloatingPointError('the loss is nan')

    monkeypatch.setattr(script, 'train', diverge)
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(tiny()))
    args = parse(['train', '--config', str(path), '--output', str(tmp_path / 'out')])
    assert main(args) == 1
    assert 'diverged: the loss is nan' in capsys.readouterr().err


@pytest.mark.slow
def test_kill_9_then_the_same_command(tmp_path):
    config = tmp_path / 'config.json'
    config.write_text(json.dumps(tiny()))
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}

    def command(output):
        script = [sys.executable, '-m', 'models.ffn.train', '--config', str(config)]
        return [*script, '--output', str(tmp_path / output)]

    with subprocess.Popen(command('killed'), **quiet) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / 'killed/curve.json').exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert 1 <= len(losses(tmp_path / 'killed')) < 4
    subprocess.run(command('killed'), check=True, **quiet)
    # Beside a process of its own: in this one, other tests have chosen how many threads add up.
    subprocess.run(command('undisturbed'), check=True, **quiet)
    assert losses(tmp_path / 'killed') == losses(tmp_path / 'undisturbed')


def test_fine_tuning_begins_with_the_given_weights(trained, tmp_path):
    output, origin = trained
    values = tiny(
        network={'init': f'{output}/model.keras', 'voxel_size_nm': [30, 12, 12]},
        rounds=1, round_steps=1,
        optimizer={'learning_rate': 1e-9, 'final_learning_rate': 1e-9, 'warmup_steps': 0},
        validation={},
    )  # fmt: skip
    ref = train(from_dict(TrainConfig, values), str(tmp_path))
    keras = import_keras(1)
    before, after = (
        keras.models.load_model(f'{path}/model.keras', compile=False).get_weights()
        for path in (output, tmp_path)
    )
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert ref.card.deltas == (1, 3, 3) and ref.card.image_mean == 137
    assert origin.card.voxel_size_nm != ref.card.voxel_size_nm == (30, 12, 12)
    assert ref.card.recipe['trained_from']['sha256'] == origin.sha256
    assert ref.card.recipe['trained_from']['recipe'] == origin.card.recipe


def test_another_training_in_the_folder_is_refused(trained):
    output, _ = trained
    with pytest.raises(ValueError, match='another configuration'):
        train(from_dict(TrainConfig, tiny(seed=5)), str(output))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data': []}, 'data is empty'),
        ({'round_steps': 0}, 'round_steps'),
        ({'data': [{'image': 'em'}]}, 'labels'),
        ({'data': [{'phantom': {'seeds': [2], 'shape': [10, 48, 48]}}]}, 'overlaps'),
        ({'sampling': {'fill_thresholds': [1, 0]}}, 'ascend'),
        ({'network': {'init': 'a.keras', 'depth': 3}}, 'network.init'),
        ({'sampling': {'move_threshold': 2.2}}, 'sampling.move_threshold'),
        ({'sampling': {'target': 0.8}}, 'sampling.move_threshold'),
        ({'augment': {'contrast': 2.0}}, 'contrast'),
        ({'augment': {'noise': -1.0}}, 'augment.noise'),
        ({'optimizer': {'learning_rate': 0.0}}, 'optimizer.learning_rate'),
        ({'optimizer': {'final_learning_rate': 1.0}}, 'optimizer.final_learning_rate'),
        ({'optimizer': {'restart_steps': [5, 5]}}, 'optimizer.restart_steps'),
        ({'validation': {'every_rounds': 0}}, 'validation.every_rounds'),
        ({'lerning_rate': 1}, 'lerning_rate'),
    ],
)
def test_bad_configurations_name_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        from_dict(TrainConfig, tiny(**changes))


def test_tissue_that_is_too_small_is_refused_before_any_work(tmp_path):
    values = tiny(data=[{'phantom': {'seeds': [1], 'shape': [4, 48, 48]}}])
    with pytest.raises(ValueError, match='must be at least'):
        train(from_dict(TrainConfig, values), str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path, capsys, tmp_path):
    config = from_dict(TrainConfig, load(str(path), []))
    if config.network.init is None:
        args = parse(['train', '--config', str(path), '--output', str(tmp_path), '--dry_run'])
        assert main(args) == 0
        assert 'Nothing was written' in capsys.readouterr().out


def test_learning_rates_start_again_at_half_the_height():
    import_keras(1)
    values = {'learning_rate': 0.004, 'final_learning_rate': 0.0004, 'warmup_steps': 2}
    once = learning_rates(OptimizerConfig(**values), 10)
    twice = learning_rates(OptimizerConfig(**values, restart_steps=(10,)), 30)
    np.testing.assert_allclose(
        [twice(step) for step in range(10)], [once(step) for step in range(10)]
    )
    rates = [float(twice(step)) for step in range(10, 31)]
    np.testing.assert_allclose(rates[:3], [0, 0.001, 0.002], atol=1e-9)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    np.testing.assert_allclose(rates[-1], 0.0002, rtol=1e-5)


@pytest.mark.parametrize('kind', ['adam', 'sgd'])
def test_a_stepper_learns_and_restores(kind):
    keras = import_keras(1)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4, 3, 9, 9, 2), np.float32)
    targets = (inputs[..., :1] > 0).astype(np.float32)

    def make():
        keras.utils.set_random_seed(1)
        model = build_ffn((3, 9, 9), depth=2, features=8)
        settings = OptimizerConfig(
            kind=kind, learning_rate=0.01, final_learning_rate=0.01, warmup_steps=0
        )
        return make_stepper(model, settings, 100)

    first = make()
    curve = [first.step(inputs, targets)[0] for _ in range(10)]
    assert curve[-1] < 0.95 * curve[0]
    second = make()
    second.restore(first.state())
    loss, logits = second.step(inputs, targets)
    assert logits.shape == targets.shape
    assert loss == first.step(inputs, targets)[0]
