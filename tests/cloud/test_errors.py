from __future__ import annotations

import pytest

from h01_beam.cloud.errors import explain


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            "429 Quota exceeded for quota metric 'Create requests' and limit 'per minute' of service",
            'quota exceeded (Create requests): wait and submit again',
        ),
        (
            "Permission 'artifactregistry.repositories.downloadArtifacts' denied on resource "
            '"projects/p/locations/us/repositories/h01" (or it may not exist).',
            'grant roles/artifactregistry.reader on the repository',
        ),
        (
            'worker@p.iam.gserviceaccount.com does not have storage.objects.create access to the '
            'Google Cloud Storage object.',
            'grant roles/storage.objectUser on the bucket',
        ),
        (
            'Image pull request failed with error: manifest unknown for image: us-docker.pkg.dev/p/a:1.',
            "image not found: workers cannot pull 'us-docker.pkg.dev/p/a:1'",
        ),
        (
            'Back-off pulling image "us-docker.pkg.dev/p/h01/w@sha256:0"',
            "image not found: workers cannot pull 'us-docker.pkg.dev/p/h01/w@sha256:0'",
        ),
        (
            'Failed to read the result file : gs://b/s/operation_result with error message: (5a): '
            'Unable to open template file: gs://b/s/operation_result..',
            'template not found: gs://b/s/operation_result:',
        ),
        (
            'Dataflow API has not been used in project p-1 before or it is disabled.',
            'Dataflow API is not enabled in project p-1',
        ),
        (
            'The workflow was automatically rejected by the service. The requested accelerator type '
            'tpu-v5-lite-podslice;topology:1x1 requires setting the worker machine type to '
            'ct5lp-hightpu-1t. Learn more at: https://x',
            'set resources.workers.machine_type to ct5lp-hightpu-1t',
        ),
        (
            'RuntimeError: TPU initialization failed: open(/dev/vfio/0): Device or resource busy',
            'several processes of one worker want its TPU',
        ),
        (
            "The zone 'projects/p/zones/us-west4-a' does not have enough resources available",
            'the zone has no such machines left',
        ),
        (
            'The Dataflow job appears to be stuck because no worker activity has been seen in the '
            'last 25m.',
            'no worker has started',
        ),
        ('Your default credentials were not found. To set up', 'gcloud auth application-default login'),
        (
            'There is already active job named a with id: 2026-1. If you want to submit a second job',
            'a job named a runs already (2026-1)',
        ),
    ],
)  # fmt: skip
def test_texts_of_the_service(text, message):
    assert message in explain(text)


def test_of_a_quota_only_what_lacks_is_told():
    text = (
        'Project p has insufficient quota(s) to execute this workflow with 1 instances in region '
        'us-central1. Quota summary (required/available): 1/6 instances, 4/3 CPUs, 1230/808 disk '
        'GB, 0/250 SSD disk GB, 1/2 in-use IP addresses.'
    )
    found = explain(text)
    assert '(CPUs: needs 4, has 3; disk GB: needs 1,230, has 808)' in found


@pytest.mark.parametrize('text', ['', 'KeyError: 3', 'stage a, block (0, 1, 2): permission denied'])
def test_other_errors_are_not_explained(text):
    assert explain(text) is None
