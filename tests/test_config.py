from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h01_beam import config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    pad_value: float = 0.05
    method: Literal['peaks', 'grid'] = 'peaks'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    image: str
    block: tuple[int, int, int] = (1, 2, 3)
    ffn: Inner = Inner()
    shard: tuple[int, int, int] | None = None
    factors: tuple[tuple[int, int, int], ...] = ()
    limit: int | None = None
    flag: bool = False
    anything: Any = None
    table: Mapping[str, float] = dataclasses.field(default_factory=dict)


def test_a_file_becomes_a_dataclass(tmp_path):
    path = tmp_path / 'run.yaml'
    path.write_text('image: em\nblock: [4, 5, 6]\nffn:\n  pad_value: 1\nfactors: [[1, 2, 2]]\n')
    overrides = ['ffn.method=grid', 'shard=[8, 8, 8]', 'limit=3', 'table={a: 1}', 'anything=[1, x]']
    made = config.from_dict(Outer, config.load(str(path), overrides))
    assert made == Outer(
        image='em', block=(4, 5, 6), ffn=Inner(pad_value=1.0, method='grid'), shard=(8, 8, 8),
        factors=((1, 2, 2),), limit=3, table={'a': 1}, anything=[1, 'x'],
    )  # fmt: skip
    assert isinstance(made.ffn.pad_value, float)


def test_an_empty_file_is_an_empty_config(tmp_path):
    path = tmp_path / 'run.yaml'
    path.write_text('# nothing\n')
    assert config.load(str(path)) == {}


def test_a_config_in_a_bucket(gcs_bucket):
    config.storage.write_bytes(f'{gcs_bucket}/run.yaml', b'image: em')
    assert config.load(f'{gcs_bucket}/run.yaml') == {'image': 'em'}


@pytest.mark.parametrize(
    'uri', ['gs://b/x|neuroglancer-precomputed:', 'em|zarr3:?mip=2', '/d/x.npz|npz:image']
)
def test_volume_uris_are_texts(uri):
    assert config.apply_overrides({}, [f'image={uri}']) == {'image': uri}


def test_overrides_leave_their_source_alone():
    source = {'ffn': {'pad_value': 1}}
    changed = config.apply_overrides(source, ['ffn.pad_value=2', 'ffn.method=grid', 'a.b=null'])
    assert changed == {'ffn': {'pad_value': 2, 'method': 'grid'}, 'a': {'b': None}}
    assert source == {'ffn': {'pad_value': 1}}


def test_numbers_without_a_point_are_numbers():
    for text, value in (('1e-3', 1e-3), ('2', 2.0), ('-3E2', -300.0)):
        mapping = config.apply_overrides({'image': 'em'}, [f'ffn.pad_value={text}'])
        assert config.from_dict(Outer, mapping).ffn.pad_value == value


@pytest.mark.parametrize(
    ('mapping', 'message'),
    [
        ({}, r"'image' is missing: set it in the file or with --set image=VALUE"),
        ({'image': 1}, r"'image' is 1: must be of type str"),
        ({'image': 'a', 'imgae': 'b'}, r"unknown config key 'imgae'.*did you mean 'image'"),
        (
            {'image': 'a', 'ffn': {'pad_valu': 1}},
            r"unknown config key 'ffn.pad_valu'.*'ffn.pad_value'",
        ),
        ({'image': 'a', 7: 1}, "unknown config key '7'"),
        ({'image': 'a', 'ffn': 3}, "'ffn' is 3: must be a mapping"),
        ({'image': 'a', 'ffn': {'method': 'x'}}, r"'ffn.method' is 'x': must be one of 'peaks'"),
        (
            {'image': 'a', 'ffn': {'pad_value': 'x'}},
            "'ffn.pad_value' is 'x': must be of type float",
        ),
        ({'image': 'a', 'block': [1, 2]}, r"'block' is \[1, 2\]: must have 3 values"),
        ({'image': 'a', 'block': '123'}, r"'block' is '123': must be a list"),
        ({'image': 'a', 'block': [1, 2, 0.5]}, r"'block\[2\]' is 0.5: must be of type int"),
        ({'image': 'a', 'block': [1, 2, True]}, r"'block\[2\]' is True: must be of type int"),
        ({'image': 'a', 'shard': 'x'}, "'shard' is 'x': must be a list"),
        ({'image': 'a', 'flag': 1}, "'flag' is 1: must be of type bool"),
    ],
)
def test_mistakes_are_named(mapping, message):
    with pytest.raises(ValueError, match=message):
        config.from_dict(Outer, mapping)


@pytest.mark.parametrize('override', ['image', '=3', 'ffn.pad_value.x=3', 'a=[1', 'a={'])
def test_malformed_overrides_are_refused(override):
    with pytest.raises(ValueError, match='--set '):
        config.apply_overrides({'ffn': {'pad_value': 1}}, [override])


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no such file; examples are in'):
        config.load(str(tmp_path / 'none.yaml'))
    for text, message in (
        ('a: [', 'is not valid YAML'),
        ('- a', 'holds a list: must be a mapping'),
    ):
        (tmp_path / 'bad.yaml').write_text(text)
        with pytest.raises(ValueError, match=message):
            config.load(str(tmp_path / 'bad.yaml'))


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / 'run.yaml').write_text('a: !!python/object/apply:os.system ["true"]')
    with pytest.raises(ValueError, match='is not valid YAML'):
        config.load(str(tmp_path / 'run.yaml'))


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False)))
def test_fingerprints_do_not_depend_on_order(mapping):
    backwards = dict(reversed(mapping.items()))
    assert config.fingerprint(mapping) == config.fingerprint(backwards)


def test_fingerprints_change_with_any_value():
    base = Outer(image='em')
    assert config.fingerprint(base) == config.fingerprint(Outer(image='em', ffn=Inner()))
    others = [
        dataclasses.replace(base, limit=1),
        dataclasses.replace(base, ffn=Inner(pad_value=0.06)),
        dataclasses.replace(base, block=(1, 3, 2)),
        dataclasses.replace(base, anything=False),
    ]
    prints = {config.fingerprint(c) for c in [base, *others]}
    assert len(prints) == 5 and all(len(p) == 32 and int(p, 16) >= 0 for p in prints)


def test_as_dict_round_trips():
    base = Outer(image='em', shard=(1, 2, 3), factors=((1, 2, 2), (2, 2, 2)))
    assert config.from_dict(Outer, config.as_dict(base)) == base
