"""The container files: locked, not root, and complete; models by digest."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import shutil
import subprocess

import pytest
import yaml

from pipelines import fetch_models, launch


@pytest.fixture(scope='module')
def stages(repository):
    """Instructions of the Dockerfile, {stage: [(instruction, arguments)]}, with what is built on."""
    text = (repository / 'deploy/Dockerfile').read_text()
    text = re.sub(r'^\s*#.*\n', '', text, flags=re.M).replace('\\\n', ' ')
    found: dict[str, list[tuple[str, str]]] = {'': []}
    current = ''
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(' ')
        if word == 'FROM':
            base, _, current = rest.partition(' AS ')
            found[current] = list(found.get(base.strip('${}').lower(), []))
            continue
        found[current].append((word, rest))
    return found


def pins(path):
    lines = [line for line in path.read_text().splitlines() if '==' in line]
    return dict(line.partition(';')[0].strip().split('==') for line in lines)


@pytest.mark.parametrize('target', ['cpu', 'gpu', 'tpu'])
def test_workers_are_not_root_and_start_beam(stages, target):
    instructions = stages[target]
    users = [rest for word, rest in instructions if word == 'USER']
    assert users[-1:] == ['1000:1000']
    entries = [rest for word, rest in instructions if word == 'ENTRYPOINT']
    assert entries == ['["/opt/apache/beam/boot"]']


@pytest.mark.parametrize('target', ['cpu', 'gpu', 'tpu'])
def test_every_installation_is_locked(stages, target):
    commands = [
        command
        for word, rest in stages[target]
        if word == 'RUN'
        for command in rest.split('&&')
        if 'pip install' in command
    ]
    assert len(commands) == 2 + (target != 'cpu')
    for command in commands:
        assert '--constraint constraints.txt' in command or '--no-deps' in command, command
        assert 'http' not in command


def test_accelerators_are_locked_to_the_jax_that_is_tested(repository):
    lock, more = (
        pins(repository / 'constraints.txt'),
        pins(repository / 'deploy/constraints-accelerators.txt'),
    )
    assert not set(lock) & set(more)
    assert more['jax-cuda12-plugin'] == more['jax-cuda12-pjrt'] == lock['jax'] == lock['jaxlib']
    assert 'libtpu' in more and 'nvidia-cudnn-cu12' in more


def test_beam_is_the_one_that_is_tested(repository):
    text = (repository / 'deploy/Dockerfile').read_text()
    version = pins(repository / 'constraints.txt')['apache-beam']
    assert f'apache/beam_python3.11_sdk:{version}' in text
    assert re.search(r'PYTHON_IMAGE=python:3\.11-', text)


def test_what_is_copied_is_in_the_context(stages, repository):
    rules = (repository / '.dockerignore').read_text().split()
    allowed = [rule[1:] for rule in rules if rule.startswith('!')]
    assert rules[0] == '*'
    for word, rest in stages['tpu']:
        if word != 'COPY' or '--from' in rest:
            continue
        for source in rest.split()[:-1]:
            assert (repository / source).exists(), source
            inside = any(
                source == rule
                or source.startswith(f'{rule}/')
                or fnmatch.fnmatch(rule, f'{source}/*')
                for rule in allowed
            )
            assert inside, f'.dockerignore leaves out {source}'


def test_the_tpu_image_knows_its_one_chip(stages):
    settings = ' '.join(rest for word, rest in stages['tpu'] if word == 'ENV')
    for setting in ('KERAS_BACKEND=jax', 'TPU_CHIPS_PER_HOST_BOUNDS=1,1,1', 'TPU_SKIP_MDS_QUERY=1'):
        assert setting in settings


@pytest.mark.skipif(shutil.which('hadolint') is None, reason='hadolint is not installed')
def test_hadolint_finds_nothing(repository):
    command = ['hadolint', str(repository / 'deploy/Dockerfile')]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_model_digests_are_those_of_the_files(repository):
    models = yaml.safe_load((repository / 'deploy/models.yaml').read_text())
    weights = {file.name for file in (repository / 'models/ffn/weights').glob('*.keras')}
    assert set(models) == weights
    for entry in models.values():
        data = (repository / entry['source']).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry['sha256']


def fetch(*flags):
    return fetch_models.main(launch.parse(fetch_models.flags())(['fetch_models', *flags]))


def test_models_are_fetched_by_digest(tmp_path, gcs_bucket, capsys):
    (tmp_path / 'a.keras').write_bytes(b'weights')
    digest = hashlib.sha256(b'weights').hexdigest()
    listed = tmp_path / 'models.yaml'
    listed.write_text(yaml.safe_dump(
        {'a.keras': {'source': f'{tmp_path}/a.keras', 'sha256': digest}}
    ))  # fmt: skip
    for folder in (f'{tmp_path}/out', f'{gcs_bucket}/models'):
        for what in ('fetched', 'is there'):
            assert fetch(f'--models={listed}', f'--output={folder}') == 0
            assert capsys.readouterr().out == f'{folder}/a.keras {what}\n'
    assert (tmp_path / 'out/a.keras').read_bytes() == b'weights'


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ({'sha256': 64 * '0'}, 'has SHA-256'),
        ({'sha256': 'abc'}, 'must be 64 hex digits'),
        ({'sha': 'abc'}, "unknown config key 'a.keras.sha'"),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, entry, message):
    (tmp_path / 'a.keras').write_bytes(b'weights')
    listed = tmp_path / 'models.yaml'
    listed.write_text(yaml.safe_dump({'a.keras': {'source': f'{tmp_path}/a.keras', **entry}}))
    assert fetch(f'--models={listed}', f'--output={tmp_path}/out') == launch.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
