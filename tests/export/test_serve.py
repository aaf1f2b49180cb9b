import http.client
import socket
import subprocess
import sys
import urllib.parse

import pytest

from h01_beam.export.files import FolderFiles
from h01_beam.export.serve import parse_range, serving

CONTENT = bytes(range(200))


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp('served')
    (folder / 'v' / 'deep').mkdir(parents=True)
    (folder / 'v' / 'deep' / 'shard').write_bytes(CONTENT)
    (folder / 'secret').write_text('secret')
    with serving() as server:
        server.base = server.add('v', FolderFiles(str(folder / 'v'))).removeprefix('precomputed://')
        yield server


def request(server, path, method='GET', **headers):
    base = urllib.parse.urlsplit(server.base)
    connection = http.client.HTTPConnection(base.hostname, base.port, timeout=10)
    # The path goes out as it is: nothing on this side tidies up its dots.
    connection.request(method, f'{base.path}{path}', headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_it_listens_on_loopback_alone(server):
    assert urllib.parse.urlsplit(server.base).hostname == '127.0.0.1'
    assert urllib.parse.urlsplit(server.url).hostname == '127.0.0.1'


def test_a_file_is_served_whole_to_any_page_that_knows_its_url(server):
    response, body = request(server, '/deep/shard')
    assert (response.status, body) == (200, CONTENT)
    assert response.headers['Access-Control-Allow-Origin'] == '*'


@pytest.mark.parametrize(
    ('asked', 'start', 'stop'),
    [
        ('bytes=10-19', 10, 20),
        ('bytes=190-', 190, 200),
        ('bytes=-16', 184, 200),
        ('bytes=150-999', 150, 200),
    ],
)
def test_ranges(server, asked, start, stop):
    response, body = request(server, '/deep/shard', Range=asked)
    assert (response.status, body) == (206, CONTENT[start:stop])
    assert response.headers['Content-Range'] == f'bytes {start}-{stop - 1}/200'


def test_a_range_outside_of_the_file(server):
    response, _ = request(server, '/deep/shard', Range='bytes=200-210')
    assert response.status == 416
    assert response.headers['Content-Range'] == 'bytes */200'


@pytest.mark.parametrize('header', [None, 'bytes=', 'bytes=-', 'lines=1-2', 'bytes=1-2,5-6'])
def test_a_header_that_is_no_single_range_is_ignored(header):
    assert parse_range(header, 200) == (0, 200)


def test_head_and_preflight(server):
    response, body = request(server, '/deep/shard', method='HEAD')
    assert (response.status, body) == (200, b'')
    assert response.headers['Content-Length'] == '200'
    response, _ = request(server, '/deep/shard', method='OPTIONS')
    assert response.status == 204
    assert 'Range' in response.headers['Access-Control-Allow-Headers']


@pytest.mark.parametrize(
    'path',
    ['/', '/deep', '/deep/', '/absent', '/../secret', '/%2e%2e/secret', '/deep/../../secret',
     '/..%2fsecret', '/deep%2f..%2f..%2fsecret', '//etc/passwd'],
)  # fmt: skip
def test_nothing_else_is_served(server, path):
    response, body = request(server, path)
    assert response.status == 404
    assert b'secret' not in body and b'shard' not in body


@pytest.mark.parametrize('method', ['PUT', 'POST', 'DELETE', 'PATCH'])
def test_it_is_read_only(server, method):
    response, _ = request(server, '/deep/shard', method=method)
    assert response.status in (403, 405)


def test_a_wrong_token_finds_nothing(server):
    token = server.viewer.token
    wrong = server.base.replace(token, '0' * len(token))
    original, server.base = server.base, wrong
    try:
        assert request(server, '/deep/shard')[0].status == 404
    finally:
        server.base = original


def test_a_port_in_use_is_an_error_that_names_it():
    script = 'from h01_beam.export.serve import serving\nwith serving({}): pass'
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, '-c', script.format(port)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert f'OSError: port is {port}: cannot listen there' in done.stderr
    assert 'choose another --port' in done.stderr
