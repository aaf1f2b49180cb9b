"""Starts one worker process for an engine: the command of `--environment_type=PROCESS`.

    python -m h01_beam.boot --id=ID --provision_endpoint=HOST:PORT

Flink and Prism call it once per worker. It asks the engine for the options of the job and
becomes Beam's worker. Code and packages are those of this machine: nothing is staged.
Protocol: Beam's container contract, `beam_provision_api.proto`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

PROVISION_LIMIT_S = 60


def main(argv: Sequence[str] | None = None) -> None:
    """Does not return: the worker takes this process over, or an error ends it."""
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument('--id', required=True)
    flags.add_argument('--provision_endpoint', required=True)
    flags.add_argument('--control_endpoint', default='')
    flags.add_argument('--logging_endpoint', default='')
    args, _ = flags.parse_known_args(argv)
    # Prism puts the id in quotes, as for a shell, but starts no shell.
    args.id = args.id.strip("'")
    from h01_beam import worker

    # A worker outlives an engine process that is killed, and would go on beside its successor.
    os.environ[worker.LAUNCHER] = str(os.getppid())
    worker.exit_with_launcher()
    os.environ.update(worker_environment(args, provision(args.provision_endpoint, args.id)))
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main([])


def provision(endpoint: str, worker_id: str) -> Any:
    """What the engine says of the job: a Beam `ProvisionInfo`."""
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
    from apache_beam.runners.worker.channel_factory import GRPCChannelFactory

    with GRPCChannelFactory.insecure_channel(endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        response = service.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[('worker_id', worker_id)],
            timeout=PROVISION_LIMIT_S,
            wait_for_ready=True,
        )
    return response.info


def worker_environment(args: argparse.Namespace, info: Any) -> dict[str, str]:
    """Environment variables by which Beam's worker knows its engine and the job."""
    from google.protobuf import json_format

    control = args.control_endpoint or info.control_endpoint.url
    logs = args.logging_endpoint or info.logging_endpoint.url
    return {
        'WORKER_ID': args.id,
        'CONTROL_API_SERVICE_DESCRIPTOR': f'url: "{control}"',
        'LOGGING_API_SERVICE_DESCRIPTOR': f'url: "{logs}"',
        'PIPELINE_OPTIONS': json_format.MessageToJson(info.pipeline_options),
        'RUNNER_CAPABILITIES': ' '.join(info.runner_capabilities),
    }


if __name__ == '__main__':
    main()
