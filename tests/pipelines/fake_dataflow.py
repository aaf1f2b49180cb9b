"""A Dataflow endpoint on loopback: checks requests, and answers as the real service does.

It runs nothing. Its errors are those that Google's documentation and users report, in the form
in which the REST API gives them.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator

JOB_ID = '2026-11-26_12_00_00-1234567890123456789'
PROJECT, REGION = 'test', 'us-central1'


class FakeDataflow:
    """What the service says, and what it was asked.

    Attributes:
      states: of the job, one for each time that somebody asks; the last one stays.
      messages: error messages of the job.
      refusal: HTTP status, canonical code and message with which submissions are refused.
      requests: (method, path, body) of all that it was asked.
      address: for --dataflow_endpoint.
    """

    def __init__(self) -> None:
        self.states = ['JOB_STATE_DONE']
        self.messages: list[str] = []
        self.refusal: tuple[int, str, str] | None = None
        self.requests: list[tuple[str, str, dict]] = []
        self.address = ''

    def submitted(self) -> list[dict]:
        """Bodies of what was to start a job."""
        return [body for method, path, body in self.requests if method == 'POST']

    def answer(self, method: str, path: str, body: dict) -> tuple[int, dict]:
        self.requests.append((method, path, body))
        base = f'/v1b3/projects/{PROJECT}/locations/{REGION}'
        if not path.startswith(base):
            return error(404, 'NOT_FOUND', f'no such resource: {path}')
        what = path.removeprefix(base)
        if method == 'POST':
            if self.refusal:
                return error(*self.refusal)
            if what == '/jobs':
                return self._create(body)
            if what == '/flexTemplates:launch':
                return self._launch(body)
        if what == f'/jobs/{JOB_ID}':
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            return 200, {'id': JOB_ID, 'name': 'job', 'currentState': state}
        if what == f'/jobs/{JOB_ID}/messages':
            texts = [
                {'id': str(i), 'time': f'2026-11-26T12:00:{i:02}Z', 'messageText': text,
                 'messageImportance': 'JOB_MESSAGE_ERROR'}
                for i, text in enumerate(self.messages)
            ]  # fmt: skip
            return 200, {'jobMessages': texts}
        if what == f'/jobs/{JOB_ID}/metrics':
            return 200, {'metrics': []}
        return error(404, 'NOT_FOUND', f'no such resource: {path}')

    def _create(self, body: dict) -> tuple[int, dict]:
        environment = body.get('environment', {})
        options = environment.get('sdkPipelineOptions', {}).get('options', {})
        if not re.fullmatch(r'[a-z]([-a-z0-9]{0,1022}[a-z0-9])?', body.get('name', '')):
            return error(400, 'INVALID_ARGUMENT', f'the job name {body.get("name")!r} is invalid')
        if not options.get('pipelineUrl', '').startswith('gs://'):
            return error(400, 'INVALID_ARGUMENT', 'the job has no pipeline')
        if not environment.get('workerPools'):
            return error(400, 'INVALID_ARGUMENT', 'the job has no workers')
        return 200, {**body, 'id': JOB_ID, 'currentState': 'JOB_STATE_PENDING'}

    def _launch(self, body: dict) -> tuple[int, dict]:
        given = body.get('launchParameter', {})
        path = given.get('containerSpecGcsPath', '')
        if not path.startswith('gs://'):
            return error(400, 'INVALID_ARGUMENT', f'Unable to open template file: {path}.')
        if not all(isinstance(value, str) for value in given.get('parameters', {}).values()):
            return error(400, 'INVALID_ARGUMENT', 'parameters are texts')
        return 200, {'job': {'id': JOB_ID, 'name': given['jobName'], 'projectId': PROJECT}}


def error(status: int, code: str, message: str) -> tuple[int, dict]:
    return status, {'error': {'code': status, 'message': message, 'status': code}}


@contextlib.contextmanager
def serving() -> Iterator[FakeDataflow]:
    """A fake on a free port of loopback, until the context ends."""
    fake = FakeDataflow()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            length = int(self.headers.get('Content-Length', 0))
            body = json.loads(self.rfile.read(length) or b'{}')
            status, content = fake.answer(self.command, self.path.partition('?')[0], body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(('localhost', 0), Handler) as server:
        fake.address = f'http://localhost:{server.server_address[1]}'
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield fake
        finally:
            server.shutdown()
