"""The job that Dataflow would get, written to a bucket as a template: stages, hints, workers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from apache_beam.portability.api import beam_runner_api_pb2

from h01_beam import storage
from h01_beam.volume import Volume, VolumeSpec
from pipelines import launch, segment
from tests.models.bright_ffn import write_bright_ffn

SHAPE, VOXEL_SIZE_NM = (32, 80, 96), (20.0, 10.0, 10.0)
CONFIG = {
    'grid': {'block_shape': [16, 32, 48], 'halo': [4, 8, 8]},
    'ffn': {'seed_voxel_size_nm': [20, 10, 10]},
    'output': {'chunk': [16, 16, 16]},
}
ACCELERATOR, RAM = 'beam:resources:accelerator:v1', 'beam:resources:min_ram_bytes:v1'
TPU = 'type:tpu-v5-lite-podslice;topology:1x1'
GPU = 'type:nvidia-l4;count:1;install-nvidia-driver:5xx'
IMAGE = 'us-docker.pkg.dev/p/h01/worker@sha256:' + 64 * 'a'


class Job:
    """The template and the portable pipeline that a launch left in a bucket."""

    def __init__(self, bucket: str):
        self.template = json.loads(storage.read_bytes(f'{bucket}/template'))
        self.staged = list(storage.list_files(f'{bucket}/tmp'))
        (path,) = (file for file in self.staged if file.endswith('/pipeline.pb'))
        self.bytes = storage.read_bytes(path)
        self.pipeline = beam_runner_api_pb2.Pipeline.FromString(self.bytes)

    @property
    def environment(self) -> dict:
        return self.template['environment']

    @property
    def pool(self) -> dict:
        (pool,) = self.environment['workerPools']
        return pool

    def hints(self) -> dict[str, dict[str, str]]:
        """By name of the transform, where it has any."""
        components = self.pipeline.components
        found = {
            t.unique_name: {
                urn: value.decode()
                for urn, value in components.environments[t.environment_id].resource_hints.items()
            }
            for t in components.transforms.values()
            if t.environment_id
        }
        return {name: hints for name, hints in found.items() if hints}

    def stages(self) -> set[str]:
        return {t.unique_name.split('/')[0] for t in self.pipeline.components.transforms.values()}


def write_inputs(bucket: str, folder: Path, **config) -> None:
    image = np.zeros(SHAPE, np.uint8)
    spec = VolumeSpec(
        uri=f'{bucket}/em|neuroglancer-precomputed:', voxel_size_nm=VOXEL_SIZE_NM, dtype='uint8',
        shape=SHAPE, chunk=(16, 32, 32),
    )  # fmt: skip
    Volume.create(spec)[0].write(spec.bounds, image)
    write_bright_ffn(folder / 'bright.keras', voxel_size_nm=VOXEL_SIZE_NM)
    storage.write_bytes(f'{bucket}/bright.keras', (folder / 'bright.keras').read_bytes())
    given = {**CONFIG, 'image': f'{bucket}/em', 'model': f'{bucket}/bright.keras', **config}
    storage.write_bytes(f'{bucket}/run.yaml', yaml.safe_dump(given).encode())


def launch_segment(bucket: str, *flags: str) -> int:
    argv = [
        'segment', '--config', f'{bucket}/run.yaml', '--run_dir', f'{bucket}/run',
        '--runner=DataflowRunner', f'--template_location={bucket}/template', '--project=test',
        '--region=us-central1', f'--temp_location={bucket}/tmp', '--sdk_location=container', *flags,
    ]  # fmt: skip
    return segment.main(launch.parse(segment.flags())(argv))


def submitted(bucket: str, folder: Path, *flags: str, **config) -> Job:
    write_inputs(bucket, folder, **config)
    assert launch_segment(bucket, *flags) == 0
    return Job(bucket)


def test_stages_carry_their_hints(gcs_bucket, tmp_path):
    """Right fitting: GPUs for one stage, more memory for another, and nothing large on board."""
    resources = {
        'workers': {'max_num_workers': 50, 'disk_size_gb': 60, 'image': IMAGE},
        'stages': {
            'flood': {'accelerator': GPU, 'min_ram_gib': 48},
            'components': {'min_ram_gib': 24},
        },
    }
    job = submitted(gcs_bucket, tmp_path, resources=resources)
    assert job.template['type'] == 'JOB_TYPE_BATCH'
    # The last step waits for every stage.
    pyramid = 'downsample_segmentation_mip1'
    stages = {'flood', 'match', 'components', 'fill', 'relabel', pyramid, 'Report'}
    assert stages < job.stages()
    hints = job.hints()
    assert hints.pop('flood/Process') == {ACCELERATOR: GPU, RAM: str(48 * 2**30)}
    assert hints
    assert all(name.startswith('components') for name in hints)
    assert all(value == {RAM: str(24 * 2**30)} for value in hints.values())
    # Workers of three kinds, as three environments of the same image.
    images = job.pool['sdkHarnessContainerImages']
    assert {image['containerImage'] for image in images} == {IMAGE}
    assert len(images) == 3
    assert job.pool['autoscalingSettings']['maxNumWorkers'] == 50
    assert job.pool['diskSizeGb'] == 60
    assert job.pool['numThreadsPerWorker'] == 1
    experiments = job.environment['experiments']
    assert 'no_use_multiple_sdk_containers' in experiments
    assert 'use_multiple_sdk_containers' not in experiments
    assert 'serviceOptions' not in job.environment
    check_nothing_large_is_embedded(gcs_bucket, job)


def check_nothing_large_is_embedded(bucket: str, job: Job) -> None:
    """Not the network, no voxel, no script, and no list of blocks."""
    staged = {path.rpartition('/')[2] for path in job.staged}
    assert staged == {'pipeline.pb', 'submission_environment_dependencies.txt'}
    model = storage.read_bytes(f'{bucket}/bright.keras')
    assert not any(model[i : i + 48] in job.bytes for i in range(0, len(model) - 48, 48))
    assert len(job.bytes) < 1_000_000
    transforms = job.pipeline.components.transforms.values()
    largest = max(transforms, key=lambda t: len(t.spec.payload))
    assert len(largest.spec.payload) < 30_000, largest.unique_name
    assert len(storage.read_bytes(f'{bucket}/template')) < 100_000


@pytest.mark.slow
def test_a_pool_of_tpu_workers(gcs_bucket, tmp_path, repository):
    """All workers alike, from the file that ships; and flags on the command line go first."""
    flags = [
        '--resources', str(repository / 'deploy/workers/tpu_v5e.yaml'), '--max_num_workers=7',
        '--service_account_email=worker@test.iam.gserviceaccount.com', '--labels=run=h01',
        '--subnetwork=regions/us-central1/subnetworks/h01', '--no_use_public_ips',
    ]  # fmt: skip
    job = submitted(gcs_bucket, tmp_path, *flags)
    # Dataflow fits no stages to TPUs: a single hint would turn that on.
    assert job.hints() == {}
    assert job.environment['serviceOptions'] == [f'worker_accelerator={TPU}']
    assert job.pool['machineType'] == 'ct5lp-hightpu-1t'
    assert job.pool['numThreadsPerWorker'] == 1
    assert 'no_use_multiple_sdk_containers' in job.environment['experiments']
    assert job.pool['autoscalingSettings']['maxNumWorkers'] == 7
    assert job.pool['subnetwork'] == 'regions/us-central1/subnetworks/h01'
    assert job.pool['ipConfiguration'] in (2, 'WORKER_IP_PRIVATE')
    assert job.environment['serviceAccountEmail'] == 'worker@test.iam.gserviceaccount.com'
    assert job.template['labels'] == {'run': 'h01'}


def test_hardware_that_does_not_fit_is_refused(gcs_bucket, tmp_path, capsys):
    cases = {
        "'floood', which is no stage of this job": {'stages': {'floood': {'cpu_count': 2}}},
        "unknown config key 'resources.pool'": {'pool': {}},
        'stage flood: a worker would need': {
            'stages': {'flood': {'min_ram_gib': 0.1, 'cpu_count': 1}}
        },
    }
    for message, resources in cases.items():
        write_inputs(gcs_bucket, tmp_path, resources=resources)
        assert launch_segment(gcs_bucket) == launch.BAD_INPUT
        assert message in capsys.readouterr().err
    assert not storage.exists(f'{gcs_bucket}/template')
