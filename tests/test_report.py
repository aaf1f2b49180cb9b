from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import imagecodecs
import numpy as np
import pytest

from h01_beam import report, storage
from h01_beam.run import Resources, Run

SUMMARY = {
    'blocks': 1234, 'blocks_run': 1000, 'blocks_reused': 234, 'rows': 0, 'seconds': 99.5,
    'wall_seconds': 50.0, 'digest': 'abc', 'fov_steps': 5, 'network_seconds': 9.0,
    'busy_seconds': 10.0, 'peak_memory_bytes': 3 * 2**29,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    run = Run(str(tmp_path / 'run'), Resources(1, 1))
    run.write_manifest('segmentation', {'image': 'em & <b>'}, {'ffn': 'sha'})
    plain = {k: v for k, v in SUMMARY.items() if not k.endswith('_seconds') and k != 'fov_steps'}
    for stage, summary in (('flood', SUMMARY), ('match', plain)):
        path = storage.join(run.ledger(stage).path, 'summary.json')
        storage.write_bytes(path, json.dumps(summary).encode())
    return run


class Text(HTMLParser):
    """Collects the text of a page, and checks that its tags are balanced."""

    def __init__(self, page):
        super().__init__()
        self.open, self.parts, self.images = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == 'img':
            self.images.append(dict(attrs))
        elif tag not in ('meta', 'br'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.parts.append(data)


def test_the_content_of_a_report(run):
    content = report.collect(run.path, ['flood', 'match'])
    assert content['run']['job'] == 'segmentation' and content['run']['models'] == {'ffn': 'sha'}
    assert list(content['stages']) == ['flood', 'match']
    assert content['stages']['flood'] == {**SUMMARY, 'network_share': 0.9}
    assert 'network_share' not in content['stages']['match']


def test_a_stage_without_work_has_no_share(run):
    path = storage.join(run.ledger('flood').path, 'summary.json')
    storage.write_bytes(path, json.dumps({**SUMMARY, 'busy_seconds': 0.0}).encode())
    assert 'network_share' not in report.collect(run.path, ['flood'])['stages']['flood']


def test_the_page_shows_numbers_and_pictures(run):
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    figure = run.figure('slice.png')
    storage.write_bytes(figure, imagecodecs.png_encode(image))
    content = report.collect(run.path, ['flood', 'match'])
    content['highlights'] = {'objects': 1234567, 'share <of> all': 0.25, 'nothing': float('nan')}
    content['scores'] = {'foreground': {'voi_split': 0.5}, 'all': {'voi_split': None, 'x': 1}}
    report.write(run.path, content, {figure: 'a "slice"'})
    page = storage.read_bytes(f'{run.path}/report.html').decode()
    text = Text(page)
    shown = ' '.join(text.parts)
    for expected in ('Segmentation report', '1,234,567', 'share <of> all', '0.25', '1,234',
                     '1.50 GiB', '90 %', 'voi split', 'em & <b>', 'flood', 'sha'):  # fmt: skip
        assert expected in shown
    assert 'None' not in shown
    (shown_image,) = text.images
    data = shown_image['src'].removeprefix('data:image/png;base64,')
    np.testing.assert_array_equal(imagecodecs.png_decode(base64.b64decode(data)), image)
    assert shown_image['alt'] == 'a "slice"'
    assert json.loads(storage.read_bytes(f'{run.path}/report.json'))['stages']['flood'] == {
        **SUMMARY, 'network_share': 0.9,
    }  # fmt: skip


def test_pages_need_nothing_from_elsewhere(run):
    page = report.render_html(run.path, report.collect(run.path, ['flood']), {})
    assert 'http' not in page and '<script' not in page


def test_reports_in_a_bucket(gcs_bucket):
    run = Run(f'{gcs_bucket}/run', Resources(1, 1))
    run.write_manifest('ingest', {}, {})
    report.write(run.path, report.collect(run.path, []), {})
    assert storage.exists(f'{gcs_bucket}/run/report.html')
