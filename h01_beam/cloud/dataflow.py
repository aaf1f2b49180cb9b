"""The service: launches a Flex Template and follows a job to its end."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

POLL_S = 10.0
# States in which a job stays.
_DONE = ('JOB_STATE_DONE', 'JOB_STATE_UPDATED', 'JOB_STATE_DRAINED')
_FAILED = ('JOB_STATE_FAILED', 'JOB_STATE_CANCELLED')


class JobFailedError(RuntimeError):
    """A job ended without success; the message is the service's."""


class Service:
    """Dataflow in one region.

    Args:
      project, region: of the jobs.
      endpoint: `http://localhost:PORT` for another than Google's.
      no_auth: whether to send no credentials.
    """

    def __init__(self, project: str, region: str, endpoint: str = '', no_auth: bool = False):
        from google.api_core.client_options import ClientOptions
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import dataflow

        self._api: Any = dataflow
        self._where = {'project_id': project, 'location': region}
        local = 'localhost' in endpoint
        host = endpoint.rstrip('/') if local else re.sub('^https?://', '', endpoint).rstrip('/')
        self._client = {
            'credentials': AnonymousCredentials() if no_auth else None,
            'client_options': ClientOptions(api_endpoint=host) if host else None,
            'transport': 'rest' if local else None,
        }

    def console(self, job_id: str) -> str:
        """Where a job can be watched."""
        project, region = self._where['project_id'], self._where['location']
        return f'https://console.cloud.google.com/dataflow/jobs/{region}/{job_id}?project={project}'

    def launch_template(self, parameter: Mapping[str, Any]) -> str:
        """Launches a template; returns the id of its job.

        Args:
          parameter: fields of `LaunchFlexTemplateParameter`.
        """
        client = self._api.FlexTemplatesServiceClient(**self._client)
        request = {**self._where, 'launch_parameter': dict(parameter)}
        response = client.launch_flex_template(
            self._api.LaunchFlexTemplateRequest(request), timeout=60
        )
        return str(response.job.id)

    def wait(self, job_id: str, say: Callable[[str], None], sleep: Callable[[float], None]) -> None:
        """Follows a job until it ends.

        Args:
          job_id: of the job.
          say: called with every new state.
          sleep: called with seconds between two questions.

        Raises:
          JobFailedError: it failed, or was cancelled.
        """
        client, last = self._api.JobsV1Beta3Client(**self._client), ''
        while True:
            request = self._api.GetJobRequest({**self._where, 'job_id': job_id})
            state = client.get_job(request, timeout=60).current_state.name
            if state != last:
                say(state.removeprefix('JOB_STATE_').lower())
                last = state
            if state in _DONE:
                return
            if state in _FAILED:
                raise JobFailedError(self._reason(job_id, state))
            sleep(POLL_S)

    def _reason(self, job_id: str, state: str) -> str:
        client = self._api.MessagesV1Beta3Client(**self._client)
        request = self._api.ListJobMessagesRequest(
            {
                **self._where,
                'job_id': job_id,
                'minimum_importance': self._api.JobMessageImportance.JOB_MESSAGE_ERROR,
            }
        )
        texts = [message.message_text for message in client.list_job_messages(request, timeout=60)]
        return '\n'.join(texts) or f'{state} without a message: see {self.console(job_id)}'
