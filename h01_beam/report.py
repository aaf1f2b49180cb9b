"""report.json and report.html: what a run did, in numbers and pictures."""

from __future__ import annotations

import base64
import html
import json
import os
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from h01_beam import quarantine, storage

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2330;max-width:1080px;margin:2.5em auto;
padding:0 1.5em}
h1{font-size:1.7em;margin:0}
h2{font-size:1.15em;margin:2.2em 0 .6em;border-bottom:1px solid #dde2ea}
p.lead{color:#5a6577;margin:.3em 0 0}
table{border-collapse:collapse;width:100%;font-size:.92em}
th{text-align:left;color:#5a6577;font-weight:600}
td,th{padding:.32em .7em;border-bottom:1px solid #eef1f5}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
tr.own td{color:#5a6577;font-size:.93em;padding-top:0}
tr.own b{color:#1c2330;font-weight:600;white-space:nowrap}
tr.has-own td{border-bottom:0}
figure{margin:1em 0}
img{max-width:100%;border-radius:4px}
figcaption{color:#5a6577;font-size:.9em}
pre{background:#f4f6f9;border-radius:4px;padding:1em;overflow:auto}
summary{cursor:pointer;color:#3d6fb4}
.tiles{display:flex;gap:1em;flex-wrap:wrap;margin:1.2em 0}
.tile{background:#f4f6f9;border-radius:6px;padding:.7em 1.1em;min-width:8em}
.tile b{display:block;font-size:1.35em}
.tile span{color:#5a6577}
"""

# Columns of the stage table that every stage has, in order; a stage's own follow them.
STAGE_COLUMNS = (
    'blocks', 'blocks_run', 'blocks_reused', 'rows', 'seconds', 'wall_seconds', 'peak_memory_bytes',
)  # fmt: skip
UNITS = {'_seconds': ' s', '_bytes': ''}


def collect(run_path: str, stages: Sequence[str]) -> dict[str, Any]:
    """Reads the manifest and the stages' summaries of a run.

    Args:
      run_path: the run directory.
      stages: names of the stages, in order.

    Returns:
      the content of report.json: `run`, and `stages` by name with blocks, seconds, and the
      numbers that each stage counts.
    """
    manifest = json.loads(storage.read_bytes(storage.join(run_path, 'run.json')))
    summaries = {
        stage: json.loads(storage.read_bytes(_summary(run_path, stage))) for stage in stages
    }
    content: dict[str, Any] = {'run': manifest}
    content['stages'] = {name: _derive(s) for name, s in summaries.items()}
    faults = _injected_faults()
    return {**content, 'faults': faults} if faults else content


def _injected_faults() -> dict[str, int]:
    """Faults that were made on purpose so far, by kind, in a test with a bucket that makes them."""
    url = os.environ.get('H01_BEAM_FAULTS_URL')
    if not url:
        return {}
    with urllib.request.urlopen(url, timeout=30) as answer:
        counts: dict[str, int] = json.loads(answer.read())
    return counts


def _summary(run_path: str, stage: str) -> str:
    """Path of a stage's summary; INNER/STAGE is a stage of the run INNER within this one."""
    inner, _, name = stage.rpartition('/')
    return storage.join(storage.join(run_path, inner) if inner else run_path, 'ledger', name,
                        'summary.json')  # fmt: skip


def write(run_path: str, content: Mapping[str, Any], figures: Mapping[str, str]) -> None:
    """Writes report.json and a self-contained report.html.

    Args:
      run_path: the run directory.
      content: as of `collect`, with anything that a job adds (`scores`, `highlights`).
      figures: caption by path of a PNG file.
    """
    text = json.dumps(content, indent=1)
    storage.write_bytes(storage.join(run_path, 'report.json'), text.encode())
    page = render_html(run_path, content, figures)
    storage.write_bytes(storage.join(run_path, 'report.html'), page.encode())


def render_html(run_path: str, content: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """One HTML page with the figures inside of it."""
    run = content['run']
    parts = [
        '<!doctype html><meta charset="utf-8">',
        f'<title>{html.escape(run["job"])} report</title><style>{STYLE}</style>',
        f'<h1>{html.escape(run["job"].capitalize())} report</h1>',
        f'<p class="lead">{html.escape(run_path)} &middot; '
        f'h01_beam {html.escape(run["version"])}</p>',
        _tiles(content.get('highlights', {})),
    ]
    parts += _hole_list(content['stages'])
    for path, caption in figures.items():
        image = base64.b64encode(storage.read_bytes(path)).decode()
        parts.append(
            f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{image}">'
            f'<figcaption>{html.escape(caption)}</figcaption></figure>'
        )
    if 'scores' in content:
        parts += ['<h2>Scores</h2>', _score_table(content['scores'])]
    if 'sections' in content:
        parts += ['<h2>Sections</h2>', _section_table(content['sections'])]
    parts += ['<h2>Stages</h2>', _stage_table(content['stages'])]
    if content.get('faults'):
        parts += ['<h2>Faults made on purpose</h2>', _tiles(content['faults'])]
    shown = {'models': run.get('models', {}), **run['config']}
    config = html.escape(yaml.safe_dump(shown, sort_keys=False, default_flow_style=None))
    parts.append(
        f'<h2>Configuration</h2><details><summary>Show</summary><pre>{config}</pre></details>'
    )
    return '\n'.join(parts)


def _derive(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Adds ratios that follow from a stage's sums."""
    derived = dict(summary)
    if summary.get('busy_seconds') and 'network_seconds' in summary:
        derived['network_share'] = round(summary['network_seconds'] / summary['busy_seconds'], 4)
    return derived


def _tiles(highlights: Mapping[str, Any]) -> str:
    tiles = (
        f'<div class="tile"><b>{_format(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in highlights.items()
    )
    return f'<div class="tiles">{"".join(tiles)}</div>' if highlights else ''


def _hole_list(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Blocks that were left out, each with its traceback if it has one."""
    listed = quarantine.holes_of(stages)
    if not listed:
        return []
    parts = [
        '<h2>Blocks that were left out</h2>',
        f'<p><b>{html.escape(quarantine.explain(stages))}</b></p>',
    ]
    for hole in listed:
        title = html.escape(f'{hole["kind"]}: {hole["error"]}')
        trace = html.escape(hole.get('traceback', ''))
        parts.append(
            f'<details><summary>{title}</summary><pre>{trace}</pre></details>'
            if trace
            else f'<p>{title}</p>'
        )
    return parts


def _stage_table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    head = ''.join(f'<th class="n">{_words(name)}</th>' for name in STAGE_COLUMNS)
    rows = []
    for name, stage in stages.items():
        cells = ''.join(
            f'<td class="n">{_format_named(c, stage[c]) if c in stage else ""}</td>'
            for c in STAGE_COLUMNS
        )
        own = ' &middot; '.join(
            f'{_words(key)} <b>{_format_named(key, value)}{_unit(key)}</b>'
            for key, value in stage.items()
            if key not in STAGE_COLUMNS and key not in ('digest', 'holes')
        )
        kind = ' class="has-own"' if own else ''
        rows.append(f'<tr{kind}><td>{html.escape(name)}</td>{cells}</tr>')
        if own:
            rows.append(f'<tr class="own"><td colspan="{len(STAGE_COLUMNS) + 1}">{own}</td></tr>')
    return f'<table><tr><th>stage</th>{head}</tr>{"".join(rows)}</table>'


def _section_table(sections: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for section in sections for name in section))
    head = ''.join(f'<th class="n">{_words(name)}</th>' for name in names)
    rows = ''.join(
        '<tr>' + ''.join(f'<td class="n">{_format(s.get(name))}</td>' for name in names) + '</tr>'
        for s in sections
    )
    return f'<table><tr>{head}</tr>{rows}</table>'


def _words(name: str) -> str:
    """A name as it is read: units are said by the value."""
    for suffix in UNITS:
        # 'seconds' and 'wall_seconds' are columns of their own.
        name = name.removesuffix(suffix) if name not in STAGE_COLUMNS else name
    return html.escape(name.removesuffix('_bytes').replace('_', ' ').replace('fov', 'FOV'))


def _unit(name: str) -> str:
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), '')


def _score_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    groups = _flatten(scores)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    head = ''.join(f'<th class="n">{html.escape(n.replace("_", " "))}</th>' for n in names)
    rows = ''.join(
        f'<tr><td>{html.escape(group)}</td>'
        + ''.join(f'<td class="n">{_format(values.get(n, ""))}</td>' for n in names)
        + '</tr>'
        for group, values in groups.items()
    )
    return f'<table><tr><th>voxels</th>{head}</tr>{rows}</table>'


def _flatten(scores: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Groups of scores by what they are of; those of a baseline follow under its name."""
    groups: dict[str, Mapping[str, Any]] = {}
    for name, values in scores.items():
        if not isinstance(values, Mapping):
            continue
        if any(isinstance(value, Mapping) for value in values.values()):
            groups |= {f'{name}, {inner}': part for inner, part in _flatten(values).items()}
        else:
            groups[name] = values
    return groups


def _format_named(name: str, value: Any) -> str:
    if name.endswith('_bytes'):
        return f'{value / 2**30:.2f} GiB'
    if name.endswith('_share'):
        return f'{100 * value:.0f} %'
    return _format(value)


def _format(value: Any) -> str:
    if value is None:
        return '-'
    if isinstance(value, float) and not value.is_integer():
        return f'{value:.4g}' if abs(value) < 100 else f'{value:,.0f}'
    if isinstance(value, int | float):
        return f'{int(value):,}'
    return html.escape(str(value))
