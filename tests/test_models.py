"""Model files: cards, identity, refusals, and a network whose results depend on its input only."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from h01_beam import models, storage
from h01_beam.model_file import pack
from h01_beam.models import ModelCard, ModelRef, computes_bfloat16, save_model
from models.ffn.network import build_ffn

# No two axes alike, so that a transposed axis fails.
FOV = (5, 7, 9)
CARD = ModelCard(
    name='small', fov_shape=FOV, deltas=(1, 2, 3), voxel_size_nm=(30, 8, 8), depth=3, features=8
)


def make_model(seed: int = 0, scale: float = 0.2) -> keras.Model:
    model = build_ffn(FOV, CARD.depth, CARD.features)
    random = np.random.default_rng(seed)
    model.set_weights([random.normal(0, scale, w.shape) for w in model.get_weights()])
    return model


def make_batch(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, *FOV, 2)).astype(np.float32)


@pytest.fixture
def ref(tmp_path) -> ModelRef:
    return save_model(make_model(), CARD, str(tmp_path / 'small.keras'))


def members(path: str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# The file.


def test_a_saved_model_resolves_to_its_card(ref, tmp_path):
    assert ModelRef.resolve(ref.uri) == ref
    assert ref.card == CARD
    beside = json.loads((tmp_path / 'small.card.json').read_text())
    assert (beside['sha256'], beside['fov_shape']) == (ref.sha256, list(FOV))
    plain = keras.models.load_model(ref.uri, safe_mode=True)
    batch = make_batch(2)
    assert np.array_equal(plain.predict_on_batch(batch), make_model().predict_on_batch(batch))


def test_equal_models_are_equal_files(ref, tmp_path):
    trained = make_model()
    trained.compile('adam', 'mse')  # Optimizers do not go into the file.
    again = save_model(trained, CARD, str(tmp_path / 'again.keras'))
    assert again.sha256 == ref.sha256
    assert Path(again.uri).read_bytes() == Path(ref.uri).read_bytes()
    card = dataclasses.replace(CARD, scores={'voi': 0.7})
    assert save_model(make_model(), card, str(tmp_path / 'c.keras')).sha256 != ref.sha256
    assert save_model(make_model(1), CARD, str(tmp_path / 'w.keras')).sha256 != ref.sha256


def test_reduced_training_precision_does_not_reach_the_file(ref, tmp_path):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        model = make_model()
    finally:
        keras.config.set_dtype_policy(policy)
    assert save_model(model, CARD, str(tmp_path / 'mixed.keras')).sha256 == ref.sha256


def test_a_bucket_is_as_good_as_a_disk(gcs_bucket):
    ref = save_model(make_model(), CARD, storage.join(gcs_bucket, 'models', 'small.keras'))
    assert ModelRef.resolve(ref.uri) == ref
    assert storage.exists(storage.join(gcs_bucket, 'models', 'small.card.json'))
    assert ref.load()(make_batch(1)).shape == (1, *FOV)
    with pytest.raises(FileNotFoundError, match='there is no such file'):
        ModelRef.resolve(storage.join(gcs_bucket, 'gone.keras'))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'fov_shape': (5, 8, 9)}, r'card.fov_shape is \(5, 8, 9\): must be odd'),
        ({'fov_shape': (5, 7)}, 'card.fov_shape is .*three integers'),
        ({'deltas': (1, 2, 5)}, r'card.deltas is \(1, 2, 5\).*less than half'),
        ({'deltas': (1, -2, 3)}, 'card.deltas'),
        ({'deltas': (0, 0, 0)}, 'card.deltas .*at least one must be positive'),
        ({'voxel_size_nm': (30, 0, 8)}, 'card.voxel_size_nm .*positive'),
        ({'image_stddev': 0.0}, 'card.image_stddev is 0.0'),
        ({'image_mean': float('nan')}, 'card.image_mean is nan'),
        ({'depth': 0}, 'card.depth is 0'),
        ({'features': -1}, 'card.features is -1'),
    ],
)
def test_invalid_cards(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CARD, **changes)


def test_a_field_of_view_may_stay_on_an_axis():
    assert dataclasses.replace(CARD, fov_shape=(1, 7, 9), deltas=(0, 2, 3)).deltas == (0, 2, 3)


def test_what_is_no_model_file_is_refused(tmp_path):
    missing = str(tmp_path / 'gone.keras')
    with pytest.raises(FileNotFoundError, match='gone.keras.*no such file; make one with'):
        ModelRef.resolve(missing)
    with pytest.raises(ValueError, match='is a folder'):
        ModelRef.resolve(str(tmp_path))
    for name, data in (
        ('weights.h5', b'\x89HDF\r\n\x1a\n' + bytes(100)),
        ('empty.keras', b''),
        ('other.zip', pack({'readme.txt': b'hello'})),
        ('broken.keras', pack({'config.json': b'{'})),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f'{name}.* is not a .keras archive'):
            ModelRef.resolve(str(tmp_path / name))


def test_a_file_without_a_valid_card_is_refused(ref, tmp_path):
    plain = str(tmp_path / 'plain.keras')
    make_model().save(plain)
    with pytest.raises(ValueError, match='plain.keras.* has no card'):
        ModelRef.resolve(plain)
    good = json.loads(members(ref.uri)['card.json'])
    for changes, message in (
        ({'colour': 'red'}, "invalid card: unknown config key 'colour'"),
        ({'deltas': [9, 9, 9]}, r'invalid card: card.deltas is \(9, 9, 9\)'),
        ({'depth': 'deep'}, "invalid card: .*'depth'"),
        ({'fov_shape': [9, 7, 5], 'deltas': [1, 1, 1]}, r'\(5, 7, 9, 2\).*needs.*\(9, 7, 5, 2\)'),
    ):
        card = json.dumps({**good, **changes}).encode()
        Path(ref.uri).write_bytes(pack({**members(ref.uri), 'card.json': card}))
        with pytest.raises(ValueError, match=message):
            ModelRef.resolve(ref.uri)


def test_other_architectures_are_refused(ref, tmp_path):
    inputs = keras.Input((*FOV, 2))
    classifier = keras.Model(inputs, keras.layers.GlobalAveragePooling3D()(inputs))
    with pytest.raises(ValueError, match=r'no flood-filling network.*output is \(2,\)'):
        save_model(classifier, CARD, str(tmp_path / 'c.keras'))
    # Such a file with a card that fits its input is found out when it is loaded.
    classifier.save(tmp_path / 'c.keras')
    forged = {**members(str(tmp_path / 'c.keras')), 'card.json': members(ref.uri)['card.json']}
    (tmp_path / 'c.keras').write_bytes(pack(forged))
    with pytest.raises(ValueError, match=r'no flood-filling network.*output is \(2,\)'):
        ModelRef.resolve(str(tmp_path / 'c.keras')).load()
    with pytest.raises(ValueError, match='must end in .keras'):
        save_model(make_model(), CARD, str(tmp_path / 'model.h5'))


def test_code_in_a_file_is_not_run(ref, tmp_path):
    inputs = keras.Input((*FOV, 2))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x[..., :1])(inputs))
    model.save(tmp_path / 'lambda.keras')
    forged = {**members(str(tmp_path / 'lambda.keras')), 'card.json': members(ref.uri)['card.json']}
    (tmp_path / 'lambda.keras').write_bytes(pack(forged))
    with pytest.raises(ValueError, match='only built-in layers are allowed'):
        ModelRef.resolve(str(tmp_path / 'lambda.keras')).load()


def test_a_replaced_file_is_refused(ref):
    planned = dataclasses.replace(ref)
    save_model(make_model(5), CARD, ref.uri)
    with pytest.raises(ValueError, match=f'this run was planned with {ref.sha256}'):
        planned.load(batch_size=7)


def test_planning_needs_no_keras(ref, repository):
    code = (
        'import sys; from h01_beam.models import ModelRef; ModelRef.resolve(sys.argv[1]);'
        'assert not {"keras", "tensorflow"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code, ref.uri], check=True, cwd=repository)


# The network.


def test_a_network_is_loaded_once(ref):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: ref.load(batch_size=2), range(8)))
    assert len({id(network) for network in loaded}) == 1
    assert ref.load(batch_size=3) is not loaded[0]
    assert (loaded[0].batch_size, loaded[0].fov_shape) == (2, FOV)


def skip_without_processor(precision):
    if precision == 'bfloat16' and not computes_bfloat16():
        pytest.skip('this processor does not compute in bfloat16')


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_logits_depend_on_neither_slot_nor_company(ref, precision):
    skip_without_processor(precision)
    sample = make_batch(1)
    alone = ref.load(precision=precision)(sample)[0].tobytes()
    for size in (2, 4):
        network = ref.load(precision=precision, batch_size=size)
        for slot in range(size):
            for company in (make_batch(size, seed=slot + 1), np.zeros((size, *FOV, 2), np.float32)):
                company[slot] = sample[0]
                assert network(company)[slot].tobytes() == alone


def test_calls_from_several_threads_do_not_mix(ref):
    network = ref.load(batch_size=2)
    batches = [make_batch(2, seed) for seed in range(16)]
    expected = [network(batch) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(network, batches), expected, strict=True):
            assert found.tobytes() == wanted.tobytes()


def test_bfloat16_is_close_and_leaves_logits_alone(ref, tmp_path):
    batch = make_batch(4)
    exact, reduced = (ref.load(precision=p, batch_size=4)(batch) for p in ('float32', 'bfloat16'))
    assert 0 < np.abs(exact - reduced).max() < 0.05 * np.abs(exact).max()
    # With no update to add, the logits come out as they went in, to the last bit.
    silent = save_model(make_model(scale=0), CARD, str(tmp_path / 'silent.keras'))
    logits = silent.load(precision='bfloat16', batch_size=4)(batch)
    assert np.array_equal(logits, batch[..., 1])
    assert logits.dtype == np.float32


def test_wrong_batches_are_refused(ref):
    network = ref.load(batch_size=2)
    for batch in (make_batch(1), make_batch(2).astype(np.float64), make_batch(2)[..., :1]):
        with pytest.raises(ValueError, match=r'must be float32 of shape \(2, 5, 7, 9, 2\)'):
            network(batch)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'precision': 'float16'}, "precision is 'float16'.*float32, bfloat16"),
        ({'batch_size': 0}, 'batch_size is 0'),
        ({'threads': -1}, 'threads is -1'),
    ],
)
def test_wrong_load_arguments(ref, arguments, message):
    with pytest.raises(ValueError, match=message):
        ref.load(**arguments)


def test_other_threads_than_the_process_has_are_logged(ref, monkeypatch):
    ref.load(batch_size=1)  # From here on TensorFlow has its threads.
    told: list[str] = []
    monkeypatch.setattr(models.logging, 'warning', lambda text, *args: told.append(text % args))
    ref.load(batch_size=1, threads=37)
    assert len(told) == 1 and 'not the 37 asked for' in told[0]


IN_A_PROCESS = """
import hashlib, sys
import numpy as np
from h01_beam import models
uri, precision, threads, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ref = models.ModelRef.resolve(uri)
network = ref.load(precision=precision, threads=threads, batch_size=batch_size)
shape = (batch_size, *ref.card.input_shape)
batch = np.random.default_rng(0).normal(size=shape).astype(np.float32)
logits = network(batch)
from h01_beam import worker
peak = worker.peak_memory_bytes()
projected = ref.projected_bytes(batch_size, precision) + models.RUNTIME_BYTES
print(hashlib.sha256(logits.tobytes()).hexdigest(), peak, projected)
"""


def in_a_process(repository, *arguments: object) -> tuple[str, int, int]:
    result = subprocess.run(
        [sys.executable, '-c', IN_A_PROCESS, *map(str, arguments)],
        check=True, cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    # A processor without bfloat16 is told of.
    lines = [
        line for line in result.stderr.splitlines() if 'which this processor lacks' not in line
    ]
    assert not lines, result.stderr
    digest, peak, projected = result.stdout.split()
    return digest, int(peak), int(projected)


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_processes_and_threads_agree_within_projected_memory(tmp_path, repository, precision):
    skip_without_processor(precision)
    fov = (33, 33, 33)
    card = ModelCard(name='full', fov_shape=fov, deltas=(8, 8, 8), depth=12, features=32)
    ref = save_model(build_ffn(fov), card, str(tmp_path / 'full.keras'))
    found = [in_a_process(repository, ref.uri, precision, threads, 2) for threads in (1, 2)]
    assert found[0][0] == found[1][0]
    for _, peak, projected in found:
        assert 0.5 * projected < peak < projected
