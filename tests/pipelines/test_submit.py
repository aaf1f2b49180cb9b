"""`python -m pipelines.submit` against a Dataflow endpoint on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import yaml

from h01_beam import storage
from pipelines import launch, submit
from tests.arrays import create
from tests.pipelines import fake_dataflow
from tests.pipelines.fake_dataflow import JOB_ID, PROJECT, REGION, FakeDataflow

QUOTA = (
    '(e8a6): Workflow failed. Causes: Project test has insufficient quota(s) to execute this '
    'workflow with 64 instances in region us-central1. Quota summary (required/available): 64/72 '
    'instances, 512/24 CPUs, 1600/4096 disk GB, 64/8 NVIDIA L4 GPUs, 1/100 instance groups.'
)
DENIED = (
    '(a1b2): Could not create workflow; user does not have write access to project: test Causes: '
    "(c3d4): Permission 'dataflow.jobs.create' denied on project: 'test'"
)
NO_IMAGE = (
    'Workflow failed. Causes: Error syncing pod: failed to "StartContainer" for "sdk-0-0" with '
    'ErrImagePull: Failed to pull image "us-docker.pkg.dev/test/h01/worker@sha256:abc": not found'
)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDataflow]:
    # The runner and the launcher ask every few seconds; here the answer is there at once.
    sleep = time.sleep
    monkeypatch.setattr(time, 'sleep', lambda seconds: sleep(min(seconds, 0.05)))
    with fake_dataflow.serving() as fake:
        yield fake


@pytest.fixture
def flags(gcs_bucket: str, service: FakeDataflow) -> list[str]:
    """A small job: the pyramid of a volume in a bucket."""
    create(f'{gcs_bucket}/em')
    return [
        'downsample', f'--volume={gcs_bucket}/em|neuroglancer-precomputed:',
        f'--run_dir={gcs_bucket}/run', '--set=levels=1', f'--project={PROJECT}',
        f'--region={REGION}', f'--temp_location={gcs_bucket}/tmp', '--no_auth',
        f'--dataflow_endpoint={service.address}', '--sdk_location=container',
    ]  # fmt: skip


def call(*flags: str) -> int:
    return submit.main(launch.parse(submit.flags())(['submit', *flags]))


def test_dry_run_prints_plan_workers_quota_and_cost(flags, service, gcs_bucket, tmp_path, capsys):
    resources = {
        'workers': {'max_num_workers': 64, 'disk_size_gb': 25, 'machine_type': 'g2-standard-8'},
        'stages': {'*': {'accelerator': 'type:nvidia-l4;count:1;install-nvidia-driver'}},
    }
    (tmp_path / 'gpu.yaml').write_text(yaml.safe_dump(resources))
    assert call(*flags, f'--resources={tmp_path}/gpu.yaml', '--no_use_public_ips', '--dry_run') == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['downsample_em_mip1', '4', '0'] in [line[:3] for line in lines]
    assert ['VM', 'instances', '64'] in lines
    assert ['G2', 'CPUs', '512'] in lines
    assert ['Persistent', 'disk', 'GB', '1,600'] in lines
    assert ['NVIDIA', 'L4', 'GPUs', '64'] in lines
    assert not any('addresses' in line for line in lines)
    head = lines.index(['stage', 'wall', 'time', 'US', 'dollars'])
    assert lines[head + 1][0] == 'downsample_em_mip1' and lines[head + 2][0] == 'all'
    assert any(line[:1] == ['Prices'] and line[-1] == 'them.' for line in lines)
    assert service.requests == []
    assert not list(storage.list_files(f'{gcs_bucket}/run'))


def test_cost_that_nobody_knows_is_told(flags, capsys):
    assert call(*flags, '--worker_machine_type=x9-mega-7', '--dry_run') == 0
    out = capsys.readouterr().out
    assert "cost: not known: machine_type is 'x9-mega-7': its cores and memory are not known" in out
    assert call(*flags, '--plan=nowhere.yaml', '--dry_run') == launch.BAD_INPUT
    assert 'nowhere.yaml' in capsys.readouterr().err


def test_a_job_whose_graph_is_built_here(flags, service, gcs_bucket):
    service.states = ['JOB_STATE_RUNNING', 'JOB_STATE_DONE']
    assert call(*flags, '--job_name=pyramid', '--labels=run=h01') == 0
    (job,) = service.submitted()
    assert (job['name'], job['labels']) == ('pyramid', {'run': 'h01'})
    options = job['environment']['sdkPipelineOptions']['options']
    assert storage.exists(options['pipelineUrl'])
    assert service.states == ['JOB_STATE_DONE']


def test_a_template(flags, service, gcs_bucket, capsys):
    service.states = ['JOB_STATE_QUEUED', 'JOB_STATE_RUNNING', 'JOB_STATE_DONE']
    template = f'{gcs_bucket}/templates/downsample.json'
    more = ['--max_num_workers=5', '--service_account_email=w@test.iam.gserviceaccount.com',
            '--no_use_public_ips', '--number_of_worker_harness_threads=2']  # fmt: skip
    assert call(*flags, *more, f'--template={template}', '--wait') == 0
    (body,) = service.submitted()
    launched = body['launchParameter']
    assert launched['containerSpecGcsPath'] == template
    assert launched['jobName'].startswith('h01-downsample-')
    assert launched['parameters'] == {
        'volume': f'{gcs_bucket}/em|neuroglancer-precomputed:',
        'run_dir': f'{gcs_bucket}/run',
        'set': 'levels=1',
        'block_attempts': '3',
    }
    environment = launched['environment']
    assert environment['maxWorkers'] == 5
    assert environment['serviceAccountEmail'] == 'w@test.iam.gserviceaccount.com'
    assert environment['ipConfiguration'] in (2, 'WORKER_IP_PRIVATE')
    assert 'number_of_worker_harness_threads=2' in environment['additionalPipelineOptions']
    out = capsys.readouterr().out
    assert f'https://console.cloud.google.com/dataflow/jobs/{REGION}/{JOB_ID}' in out
    assert out.splitlines()[-3:] == ['queued', 'running', 'done']


def test_files_of_a_template_are_staged(gcs_bucket, tmp_path):
    """The launcher sees no file of this machine; overrides are in the file that it gets."""
    (tmp_path / 'run.yaml').write_text('a: {b: 1}\nc: 2\n')
    (tmp_path / 'cpu.yaml').write_text('workers: {max_num_workers: 3}\n')
    parser = launch.parser('A job.')
    args = launch.parse(parser)(
        ['job', f'--config={tmp_path}/run.yaml', '--set=a.b=5', f'--run_dir={gcs_bucket}/run',
         f'--resources={tmp_path}/cpu.yaml']
    )  # fmt: skip
    submit.stage_files(args)
    first = (args.config, args.resources)
    assert all(path.startswith(f'{gcs_bucket}/run/submitted/') for path in first)
    assert yaml.safe_load(storage.read_bytes(args.config)) == {'a': {'b': 5}, 'c': 2}
    assert args.set == []
    submit.stage_files(args)
    assert (args.config, args.resources) == first


REFUSALS = {
    'quota': (
        (429, 'RESOURCE_EXHAUSTED', QUOTA),
        'CPUs: needs 512, has 24; NVIDIA L4 GPUs: needs 64, has 8',
    ),
    'permission': (
        (403, 'PERMISSION_DENIED', DENIED),
        'permission denied: dataflow.jobs.create on test: grant roles/dataflow.developer',
    ),
    'template': (
        (400, 'INVALID_ARGUMENT', 'Unable to open template file: gs://b/t/x.json.'),
        'template not found: gs://b/t/x.json',
    ),
}


@pytest.mark.parametrize(
    ('case', 'template'),
    [('quota', True), ('permission', True), ('template', True), ('permission', False)],
)
def test_refusals_reach_the_user(flags, service, gcs_bucket, capsys, case, template):
    service.refusal, message = REFUSALS[case]
    how = [f'--template={gcs_bucket}/t.json'] if template else []
    assert call(*flags, *how) == launch.FAILED
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[0].startswith('error: ')
    assert message in errors[0]
    assert len(errors) <= 2, errors


@pytest.mark.parametrize(
    ('text', 'message', 'template'),
    [
        (QUOTA, 'quota exceeded in project test, region us-central1', True),
        (NO_IMAGE, "image not found: workers cannot pull 'us-docker.pkg.dev/test/h01/worker@sha256:abc'", True),
        (NO_IMAGE, "image not found: workers cannot pull 'us-docker.pkg.dev/test/h01/worker@sha256:abc'", False),
    ],
    ids=['quota', 'image', 'image, graph built here'],
)  # fmt: skip
def test_failures_of_a_job_reach_the_user(
    flags, service, gcs_bucket, capsys, text, message, template
):
    service.states, service.messages = ['JOB_STATE_RUNNING', 'JOB_STATE_FAILED'], [text]
    how = [f'--template={gcs_bucket}/t.json', '--wait'] if template else []
    assert call(*flags, *how) == launch.FAILED
    errors = capsys.readouterr().err.strip().splitlines()
    assert any(line.startswith('error: ') and message in line for line in errors), errors


@pytest.mark.parametrize('missing', ['project', 'region', 'temp_location'])
def test_what_every_job_needs(flags, capsys, missing, monkeypatch):
    monkeypatch.delenv('GOOGLE_CLOUD_PROJECT')
    given = [flag for flag in flags if not flag.startswith(f'--{missing}')]
    assert call(*given) == launch.BAD_INPUT
    assert f'--{missing} is missing: give it' in capsys.readouterr().err


def test_an_unknown_job(capsys):
    assert call('segmnt', '--run_dir=x') == launch.BAD_INPUT
    assert "job is 'segmnt': must be one of align, " in capsys.readouterr().err
