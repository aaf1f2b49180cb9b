"""Flex Templates: what a job takes, as Dataflow's metadata; and how one is launched.

A template is one JSON file in a bucket: the image that builds the job, and the parameters that
it takes. Those are read off the job's own argument parser, so that both never differ.

https://docs.cloud.google.com/dataflow/docs/guides/templates/using-flex-templates
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Files that the launcher reads, which it does not find on the machine of the user.
_READ = ('config', 'resources')
_PATTERNS = {
    'int': r'^-?\d+$',
    'float': r'^-?\d+(\.\d+)?([eE]-?\d+)?$',
    'integers': r'^-?\d+(,-?\d+)*$',
    'numbers': r'^-?\d+(\.\d+)?(,-?\d+(\.\d+)?)*$',
}
# The metadata's limits: labels, and what one help text holds.
_LABEL, _HELP = 60, 500


def describe_job(name: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """A job's metadata: its name, what it does, and one parameter for each of its flags.

    Switches without a value are left out: a template gives every parameter one.
    """
    text = (parser.description or '').strip()
    actions = [a for a in parser._actions if a.option_strings and a.nargs != 0]
    return {
        'name': f'h01_beam {name}',
        'description': text.split('\n\n')[0].replace('\n', ' '),
        'parameters': [_describe(action) for action in actions],
    }


def _describe(action: argparse.Action) -> dict[str, Any]:
    text = (action.help or action.dest).replace('%(default)s', str(action.default))
    result: dict[str, Any] = {
        'name': action.dest,
        'label': action.dest.replace('_', ' ').capitalize()[:_LABEL],
        'helpText': (text[0].upper() + text[1:])[:_HELP],
        'isOptional': not action.required,
        'paramType': 'GCS_READ_FILE' if action.dest in _READ else 'TEXT',
    }
    pattern = _pattern(action)
    if pattern:
        result['regexes'] = [pattern]
    if isinstance(action, argparse._AppendAction):
        result['helpText'] += '; one of them, more belong in the file'
    return result


def _pattern(action: argparse.Action) -> str | None:
    if action.choices:
        return f'^({"|".join(re.escape(str(choice)) for choice in action.choices)})$'
    if action.dest in _READ or action.dest == 'run_dir':
        return '^gs://.+$'
    return _PATTERNS.get(getattr(action.type, '__name__', ''))


def container_spec(image: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The template's file.

    Args:
      image: that builds the job, by digest.
      metadata: see `describe_job`.

    Raises:
      ValueError: the image is named by a tag, which may be another one tomorrow.
    """
    check_digest('--image', image)
    return {
        'image': image,
        'sdkInfo': {'language': 'PYTHON'},
        'metadata': dict(metadata),
        'defaultEnvironment': {'sdkContainerImage': image},
    }


def check_digest(what: str, image: str) -> None:
    """Raises a ValueError for an image that is not named by its digest."""
    if not re.fullmatch(r'[^@\s]+@sha256:[0-9a-f]{64}', image):
        raise ValueError(
            f'{what} is {image!r}: must name an image by its digest, '
            'HOST/PROJECT/REPOSITORY/NAME@sha256:..., as the push prints it; a tag may be moved'
        )


# Beam's options that a template's environment has fields for.
_ENVIRONMENT = {
    'num_workers': 'num_workers',
    'max_num_workers': 'max_workers',
    'machine_type': 'machine_type',
    'temp_location': 'temp_location',
    'staging_location': 'staging_location',
    'service_account_email': 'service_account_email',
    'network': 'network',
    'subnetwork': 'subnetwork',
    'worker_zone': 'worker_zone',
    'disk_size_gb': 'disk_size_gb',
    'sdk_container_image': 'sdk_container_image',
    'dataflow_kms_key': 'kms_key_name',
}


def environment(options: Mapping[str, Any]) -> dict[str, Any]:
    """The environment of a launch: fields of `FlexTemplateRuntimeEnvironment`.

    Args:
      options: Beam's, by name; those that are None were not given.
    """
    result = {
        field: options[name]
        for name, field in _ENVIRONMENT.items()
        if options.get(name) is not None
    }
    if options.get('use_public_ips') is not None:
        public = options['use_public_ips']
        result['ip_configuration'] = 'WORKER_IP_PUBLIC' if public else 'WORKER_IP_PRIVATE'
    for name, field in (
        ('experiments', 'additional_experiments'),
        ('dataflow_service_options', 'additional_pipeline_options'),
    ):
        if options.get(name):
            prefix = '' if name == 'experiments' else f'{name}='
            result[field] = [prefix + value for value in options[name]]
    threads = options.get('number_of_worker_harness_threads')
    if threads:
        more = result.setdefault('additional_pipeline_options', [])
        more.append(f'number_of_worker_harness_threads={threads}')
    if options.get('labels'):
        pairs = (label.partition('=') for label in options['labels'])
        result['additional_user_labels'] = {key: value for key, _, value in pairs}
    return result


def parameters(args: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    """Parameters of a launch: every flag that was given, as text.

    Raises:
      ValueError: a flag was given twice, for which a template has no room.
    """
    result = {}
    for name in names:
        value = getattr(args, name)
        if value is None or value == []:
            continue
        if isinstance(value, list) and len(value) > 1:
            raise ValueError(f'--{name} is given {len(value)} times: a template takes it once')
        if isinstance(value, list):
            value = value[0]
        result[name] = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
    return result
