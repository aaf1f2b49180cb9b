"""The infrastructure as code: against the provider's schema, and for least privilege."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import pytest
from google.cloud import dataflow

from pipelines import templates

SCHEMA = json.loads((Path(__file__).parent / 'google_schema.json').read_text())
# What Terraform itself takes in every resource.
META = {'for_each', 'count', 'depends_on', 'provider', 'lifecycle', '__is_block__', '__comments__'}
REFERENCE = re.compile(r'(?<![\w."])(data\.)?(google_\w+)\.(\w+)((?:\[[^\]]*\])?)(?:\.(\w+))?')


@pytest.fixture(scope='module')
def code(repository) -> dict[str, list[dict]]:
    """All blocks of all files, by kind."""
    merged: dict[str, list[dict]] = {}
    for file in sorted((repository / 'deploy/terraform').glob('*.tf')):
        for kind, blocks in hcl2.loads(file.read_text()).items():
            if kind != '__comments__':
                merged.setdefault(kind, []).extend(blocks)
    return merged


def unquote(text: str) -> str:
    return text.strip('"')


def resources(code, kinds=('resource', 'data')) -> Iterator[tuple[str, str, str, dict]]:
    """(kind, type, name, body) of every resource."""
    for kind in kinds:
        for block in code.get(kind, []):
            for of_type, named in block.items():
                for name, body in named.items():
                    yield kind, unquote(of_type), unquote(name), body


def of_type(code, wanted: str) -> list[dict]:
    return [body for _, kind, _, body in resources(code) if kind == wanted]


def problems(body: dict, schema: dict, where: str) -> Iterator[str]:
    """What of a block the provider would refuse."""
    given = {name for name in body if name not in META} | {
        unquote(name) for block in body.get('dynamic', []) for name in block if name not in META
    }
    for name in sorted(given - set(schema) - {'dynamic'}):
        yield f'{where} has no {name}'
    for name, field in schema.items():
        if field['required'] and name not in given:
            yield f'{where} lacks {name}'
    for name, value in body.items():
        if name in META or name not in schema:
            continue
        field = schema[name]
        is_block = isinstance(value, list) and any(isinstance(v, dict) for v in value)
        if 'block' not in field:
            if is_block or (field['type'] == 'boolean' and not _may_be_boolean(value)):
                yield f'{where}.{name} must be a {field["type"]}'
            continue
        if not is_block or (len(value) > 1 and not field['many']):
            yield f'{where}.{name} must be {"blocks" if field["many"] else "one block"}'
            continue
        for inner in value:
            yield from problems(inner, field['block'], f'{where}.{name}')
    for block in body.get('dynamic', []):
        for name, dynamic in block.items():
            if name in META or 'block' not in schema.get(unquote(name), {}):
                continue
            for content in dynamic['content']:
                yield from problems(content, schema[unquote(name)]['block'], f'{where}.{name}')


def _may_be_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.startswith('${'))


def test_every_resource_is_of_the_providers_schema(code):
    found = list(resources(code))
    assert len(found) > 15
    for kind, type_, name, body in found:
        schema = SCHEMA['resources'][type_]['arguments']
        assert list(problems(body, schema, f'{kind}.{type_}.{name}')) == []


def test_the_schema_is_of_the_version_that_is_asked_for(code):
    (terraform,) = code['terraform']
    provider = terraform['required_providers'][0]['google']
    assert unquote(provider['source']) == SCHEMA['provider']
    assert unquote(provider['version']) == '~> ' + SCHEMA['version'].rpartition('.')[0]


@pytest.mark.parametrize(
    ('body', 'problem'),
    [
        ({'name': '"a"'}, 'b lacks location'),
        ({'name': '"a"', 'location': '"eu"', 'lokation': '"eu"'}, 'b has no lokation'),
        ({'name': '"a"', 'location': '"eu"', 'versioning': True}, 'b.versioning must be one block'),
        (
            {'name': '"a"', 'location': '"eu"', 'versioning': [{'on': True}]},
            'b.versioning has no on',
        ),
        ({'name': '"a"', 'location': '"eu"', 'force_destroy': '"yes"'}, 'b.force_destroy must be'),
        (
            {'name': '"a"', 'location': '"eu"', 'dynamic': [
                {'"lifecycle_rule"': {'for_each': [1], 'content': [{'condition': [{'age': 1}]}]}}
            ]},
            'b."lifecycle_rule" lacks action',
        ),
    ],
)  # fmt: skip
def test_faults_are_found(body, problem):
    schema = SCHEMA['resources']['google_storage_bucket']['arguments']
    assert any(found.startswith(problem) for found in problems(body, schema, 'b'))


def expressions(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)
    elif isinstance(value, str):
        yield value


def test_references_lead_somewhere(code):
    known = {(kind, type_, name) for kind, type_, name, _ in resources(code)}
    variables = {unquote(name) for block in code['variable'] for name in block}
    locals_ = {name for block in code['locals'] for name in block}
    used = set()
    for text in expressions(code):
        for is_data, type_, name, _, attribute in REFERENCE.findall(text):
            assert ('data' if is_data else 'resource', type_, name) in known, text
            known_attributes = {*SCHEMA['resources'][type_]['attributes'], 'id', ''}
            assert attribute in known_attributes, text
        found = set(re.findall(r'\bvar\.(\w+)', text))
        assert found <= variables, text
        used |= found
        assert set(re.findall(r'\blocal\.(\w+)', text)) <= locals_, text
    assert used == variables, 'a variable is never used'


def test_nobody_has_more_than_needed(code):
    grants = [
        body
        for _, type_, _, body in resources(code)
        if type_.endswith(('_iam_member', '_iam_binding'))
    ]
    assert grants
    (maps,) = [b for b in code['locals'] if 'worker_buckets' in b]
    roles = {unquote(body['role']) for body in grants if not body['role'].startswith('${')}
    roles |= {unquote(role) for role in maps['worker_buckets'].values() if role != '__is_block__'}
    assert roles == {
        'roles/dataflow.worker', 'roles/dataflow.developer', 'roles/iam.serviceAccountUser',
        'roles/artifactregistry.reader', 'roles/artifactregistry.writer',
        'roles/storage.objectViewer', 'roles/storage.objectUser',
    }  # fmt: skip
    # Of the whole project, only what Dataflow has no smaller place for.
    project = {unquote(b['role']) for b in of_type(code, 'google_project_iam_member')}
    assert project == {'roles/dataflow.worker', 'roles/dataflow.developer'}
    assert unquote(maps['worker_buckets']['data']) == 'roles/storage.objectViewer'
    assert not any('allUsers' in text or 'allAuthenticated' in text for text in expressions(code))


def test_buckets_are_private(code):
    (bucket,) = of_type(code, 'google_storage_bucket')
    assert bucket['uniform_bucket_level_access'] is True
    assert unquote(bucket['public_access_prevention']) == 'enforced'
    assert bucket['lifecycle'][0]['prevent_destroy'] is True


def test_the_schedule_launches_the_template_as_the_service_wants_it(code):
    (schedule,) = of_type(code, 'google_cloud_scheduler_job')
    (target,) = schedule['http_target']
    assert unquote(target['uri']).endswith('/locations/${var.region}/flexTemplates:launch')
    body = target['body']
    assert body.startswith('${base64encode(jsonencode(')
    given = set(re.findall(r'(\w+) *= ', body))
    fields = {*dataflow.FlexTemplateRuntimeEnvironment.meta.fields}
    launch = {*dataflow.LaunchFlexTemplateParameter.meta.fields, 'launch_parameter'}
    camel = {re.sub(r'_(\w)', lambda m: m[1].upper(), name) for name in fields | launch}
    assert {'jobName', 'containerSpecGcsPath', 'serviceAccountEmail', 'maxWorkers'} <= given
    assert given - {'run_dir'} <= camel
    assert '/templates/reprocess.json' in body
    assert 'oauth_token' in target


def test_the_flags_of_its_output_are_beams(code):
    (flags,) = [b['"beam_flags"'] for b in code['output'] if '"beam_flags"' in b]
    named = re.findall(r'--(\w+)', json.dumps(flags))
    assert {'project', 'region', 'temp_location', 'service_account_email'} < set(named)
    from pipelines import launch

    launch.beam_options(
        [f'--{name}' if name.startswith('no_') else f'--{name}=x' for name in named]
    )


def test_reprocessing_takes_a_run_directory():
    """The template that the schedule names."""
    if 'reprocess' not in templates.job_names():
        pytest.skip('there is no pipelines.reprocess')
    parameters = templates.describe('reprocess')['parameters']
    assert 'run_dir' in [parameter['name'] for parameter in parameters]
