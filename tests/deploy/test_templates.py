"""Templates and their metadata: current, of the form that Dataflow wants, and of every job."""

from __future__ import annotations

import argparse
import json
import re

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from h01_beam.cloud import flex
from pipelines import launch, templates

IMAGE = 'us-docker.pkg.dev/p/h01/segment@sha256:' + 64 * '0'
# Ours goes before Beam's switch of the same name, which builds a job and does not submit it.
SHARED = {'dry_run'}
BEAM = [
    '--runner=DataflowRunner', '--project=p', '--region', 'us-central1', '--temp_location=gs://b/t',
    '--worker_machine_type=n2-standard-8', '--num_workers', '4', '--experiments=a', '--labels=a=b',
    '--setup_file=./setup.py', '--sdk_container_image', IMAGE, '--no_use_public_ips',
    '--dataflow_service_options=enable_google_cloud_profiler', '--job_name=j', '--streaming',
]  # fmt: skip


def test_there_is_one_for_every_job(repository):
    assert {'align', 'segment', 'downsample', 'phantom'} <= set(templates.job_names())
    files = {file.stem for file in (repository / 'deploy/templates').glob('*.json')}
    assert files == set(templates.job_names())


@pytest.mark.parametrize('name', templates.job_names())
def test_metadata_is_current(name, repository):
    found = (repository / f'deploy/templates/{name}.json').read_bytes()
    assert found == templates.render(templates.describe(name)), 'run python -m pipelines.templates'


@pytest.mark.parametrize('name', templates.job_names())
def test_metadata_is_of_dataflows_form(name):
    metadata = templates.describe(name)
    assert metadata['description'].endswith('.') or ':' in metadata['description']
    names = [parameter['name'] for parameter in metadata['parameters']]
    assert len(set(names)) == len(names)
    for parameter in metadata['parameters']:
        assert set(parameter) - {'regexes'} == {
            'name',
            'label',
            'helpText',
            'isOptional',
            'paramType',
        }
        assert re.fullmatch('[a-z][a-z_0-9]*', parameter['name'])
        assert parameter['helpText'] and '%(' not in parameter['helpText']
        for pattern in parameter.get('regexes', ()):
            re.compile(pattern)


@pytest.mark.parametrize('name', templates.job_names())
def test_every_job_leaves_beams_options_to_beam(name):
    """Their names are Beam's alone, and they reach it as they are."""
    parser = templates.job(name).flags()
    ours = {option for action in parser._actions for option in action.option_strings}
    beams: set[str] = set()

    def collect(beam_parser: argparse.ArgumentParser) -> None:
        beams.update(option for a in beam_parser._actions for option in a.option_strings)

    PipelineOptions([]).get_all_options(add_extra_args_fn=collect)
    assert beams & ours <= {'-h', '--help'} | {f'--{flag}' for flag in SHARED}
    required = [
        f'{action.option_strings[0]}=1,1,1' for action in parser._actions if action.required
    ]
    args = launch.parse(parser)([name, *required, *BEAM])
    assert args.beam == BEAM
    assert launch.beam_options(args.beam).get_all_options()['machine_type'] == 'n2-standard-8'


def test_patterns_take_what_the_parser_takes():
    parser = argparse.ArgumentParser(description='A job.')
    parser.add_argument('--shape', type=launch.integers)
    parser.add_argument('--size', type=launch.numbers)
    parser.add_argument('--kind', choices=('image', 'x.y'), required=True)
    parser.add_argument('--seed', type=int, default=3, help='default: %(default)s')
    parser.add_argument('--switch', action='store_true')
    found = {p['name']: p for p in flex.describe_job('a', parser)['parameters']}
    assert set(found) == {'shape', 'size', 'kind', 'seed'}
    assert not found['kind']['isOptional'] and found['seed']['isOptional']
    assert found['seed']['helpText'] == 'Default: 3'
    for name, good, bad in (
        ('shape', '64,32,-1', '1.5,2'),
        ('size', '30,8.25', 'a'),
        ('kind', 'x.y', 'xzy'),
        ('seed', '-7', '7.5'),
    ):
        (pattern,) = found[name]['regexes']
        assert re.search(pattern, good) and not re.search(pattern, bad)


def test_a_template_names_its_image_by_digest(tmp_path, capsys):
    argv = ['templates', '--job=segment', f'--output={tmp_path}']
    parse = launch.parse(templates.flags())
    assert templates.main(parse([*argv, f'--image={IMAGE}'])) == 0
    spec = json.loads((tmp_path / 'segment.json').read_bytes())
    assert spec['image'] == spec['defaultEnvironment']['sdkContainerImage'] == IMAGE
    assert spec['metadata'] == templates.describe('segment')
    assert spec['sdkInfo'] == {'language': 'PYTHON'}
    for image, message in (
        ('us-docker.pkg.dev/p/h01/segment:latest', 'must name an image by its digest'),
        (None, 'need --image'),
    ):
        flags = [*argv] + ([f'--image={image}'] if image else [])
        assert templates.main(parse(flags)) == launch.BAD_INPUT
        assert message in capsys.readouterr().err
