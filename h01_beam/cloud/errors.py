"""Errors of Google Cloud in plain words: what is wrong, with what, and the way out.

The texts are those that Dataflow gives, at submission or among a job's messages:
https://docs.cloud.google.com/dataflow/docs/guides/common-errors,
https://docs.cloud.google.com/dataflow/docs/tpu/troubleshoot-tpus.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_Explain = Callable[[re.Match[str]], str]


def explain(text: str) -> str | None:
    """The error in one line with its way out; None for a text that is none of Google Cloud's.

    Args:
      text: of an exception, or of a job's error message.
    """
    for pattern, message in _KNOWN:
        found = re.search(pattern, text, re.S)
        if found:
            return message(found)
    return None


def _quota(found: re.Match[str]) -> str:
    short = [
        f'{what.strip()}: needs {float(need):,g}, has {float(have):,g}'
        for need, have, what in re.findall(r'([\d.]+)/([\d.]+) ([^,.]+)', found['summary'])
        if float(need) > float(have)
    ]
    lacking = '; '.join(short) or found['summary'].strip()
    return (
        f'quota exceeded in project {found["project"]}, region {found["region"]} ({lacking}): ask '
        'for more in the console under IAM, Quotas, or use fewer workers (--max_num_workers, '
        'resources.workers) or another region'
    )


def _rate(found: re.Match[str]) -> str:
    return (
        f'quota exceeded ({found["metric"]}): wait and submit again, or ask for more in the '
        'console under IAM, Quotas'
    )


def _permission(found: re.Match[str]) -> str:
    permission, resource = found['permission'], found['resource']
    role = next((r for start, r in _ROLES.items() if permission.startswith(start)), None)
    advice = f'grant {role}' if role else 'grant a role that has it'
    return (
        f'permission denied: {permission} on {resource}: {advice} to whoever submits, or to the '
        'service account of the workers where these say so; deploy/terraform sets up both'
    )


def _image(found: re.Match[str]) -> str:
    image = found['image'].strip('"\'').rstrip('.,:')
    return (
        f'image not found: workers cannot pull {image!r}: build and push it (deploy/README.md), '
        'name it by the digest that the push prints, and grant the service account of the workers '
        'roles/artifactregistry.reader'
    )


def _template(found: re.Match[str]) -> str:
    return (
        f'template not found: {found["path"].rstrip(".")}: write it with '
        'python -m pipelines.templates --image IMAGE --output gs://BUCKET/templates, and let the '
        'service account of the workers read it'
    )


def _disabled(found: re.Match[str]) -> str:
    return (
        f'{found["api"]} is not enabled in project {found["project"]}: give gcloud services enable '
        f'{found["api"]} --project {found["project"]}'
    )


def _say(message: str) -> _Explain:
    return lambda found: message.format(**found.groupdict())


# By how the permission's name starts.
_ROLES = {
    'dataflow.': 'roles/dataflow.developer',
    'iam.serviceAccounts.actAs': 'roles/iam.serviceAccountUser on that service account',
    'storage.': 'roles/storage.objectUser on the bucket',
    'artifactregistry.': 'roles/artifactregistry.reader on the repository',
    'cloudscheduler.': 'roles/cloudscheduler.admin',
}

_NAME = r'[\w.:@/-]+'

# The first that is found speaks: causes stand before what follows from them.
_KNOWN: tuple[tuple[str, _Explain], ...] = (
    (
        rf'Project (?P<project>{_NAME}) has insufficient quota\(s\).*? in region '
        rf'(?P<region>[\w-]+)\. Quota summary \(required/available\): (?P<summary>[^\n]+)',
        _quota,
    ),
    (r"Quota exceeded for quota metric '(?P<metric>[^']+)'", _rate),
    (r"Quota '(?P<metric>[^']+)' exceeded", _rate),
    (
        r'(?:Failed to pull image|[Ii]mage pull request failed.*?for image|'
        r'failed to resolve reference|unable to pull image)[: ]*(?P<image>["\']?[\w.:@/-]+["\']?)',
        _image,
    ),
    (r'(?:Back-off pulling image|ImagePullBackOff|ErrImagePull)[^"\']*(?P<image>["\'][^"\']+["\'])',
     _image),
    (
        rf"Permission '?(?P<permission>[a-z]+\.\w+(?:\.\w+)+)'? denied on "
        rf"(?:resource |project: |{_NAME} )?['\"]?(?P<resource>[^'\"\s]+)",
        _permission,
    ),
    (
        r'does not have (?P<permission>[a-z]+\.\w+\.\w+) access to (?:the )?(?P<resource>[^\n.]+)',
        _permission,
    ),
    (rf'Unable to open template file: ?(?P<path>gs://{_NAME})', _template),
    (
        rf'(?P<api>[\w.]+\.googleapis\.com|\w[\w ]* API) has not been used in project '
        rf'(?P<project>{_NAME})',
        _disabled,
    ),
    (
        r'(?P<what>The requested accelerator type \S+ requires setting the worker machine type to '
        r'(?P<machine>[\w-]+))',
        _say(
            '{what}: set resources.workers.machine_type to {machine}, or leave it out with '
            'fitting: pool'
        ),
    ),
    (
        r'/dev/vfio/\d+\): Device or resource busy',
        _say(
            'several processes of one worker want its TPU: leave out resources.workers.processes, '
            'or give --experiments=no_use_multiple_sdk_containers'
        ),
    ),
    (
        r'Managed Instance Groups do not support Cloud TPUs',
        _say(
            'the project may not use TPUs in Dataflow yet (they are to be asked for), or the '
            'accelerator is no worker_accelerator: use fitting: pool'
        ),
    ),
    (
        r'ZONE_RESOURCE_POOL_EXHAUSTED|does not have enough resources available',
        _say(
            'the zone has no such machines left: try again later, another --worker_zone or region, '
            'or another machine type'
        ),
    ),
    (
        r'no worker activity has been seen',
        _say(
            'no worker has started: see the job\'s worker logs; with accelerators, capacity or '
            'quota may lack, or the image does not start (deploy/README.md)'
        ),
    ),
    (
        r'default credentials were not found|Request had invalid authentication credentials|'
        r'UNAUTHENTICATED',
        _say(
            'not signed in to Google Cloud: give gcloud auth application-default login, or set '
            'GOOGLE_APPLICATION_CREDENTIALS'
        ),
    ),
    (
        r'There is already active job named (?P<job>\S+) with id: (?P<id>[\w-]+)',
        _say(
            'a job named {job} runs already ({id}): wait for it, cancel it, or give another '
            '--job_name'
        ),
    ),
)  # fmt: skip
