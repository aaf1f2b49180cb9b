"""Run configuration: one YAML file, overrides, frozen dataclasses, and their fingerprint."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

from h01_beam import storage

T = TypeVar('T')


def load(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a YAML file and applies `key.key=value` overrides, whose values are YAML too.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no mapping, or an override is no `key=value`.
    """
    try:
        text = storage.read_bytes(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f'config is {path!r}: there is no such file; examples are in pipelines/configs/'
        ) from None
    try:
        mapping = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f'config {path!r} is not valid YAML: {error}') from error
    if not isinstance(mapping, dict):
        raise ValueError(f'config {path!r} holds a {type(mapping).__name__}: must be a mapping')
    return apply_overrides(mapping, overrides)


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns a copy of `mapping` with every `key.key=value` set."""
    result: dict[str, Any] = copy.deepcopy(dict(mapping))
    for override in overrides:
        path, equals, value = override.partition('=')
        if not equals or not path:
            raise ValueError(
                f'--set {override!r}: must be key=value, for example ffn.pad_value=0.5'
            )
        *parents, leaf = path.split('.')
        node = result
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ValueError(f'--set {override!r}: {parent!r} holds {child!r}, not a mapping')
            node = child
        node[leaf] = _parse_value(override, value)
    return result


def _parse_value(override: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f'--set {override!r}: the value is not valid YAML: {error}') from error
    # A volume URI ends with a colon, which makes it a mapping to YAML.
    return text if isinstance(value, dict) and not text.lstrip().startswith('{') else value


def from_dict(cls: type[T], mapping: Mapping[str, Any], where: str = '') -> T:
    """Builds a (nested) config dataclass; unknown keys, missing keys and wrong types are errors.

    Lists become tuples. The dataclass checks its own values in `__post_init__`.

    Args:
      cls: a dataclass type.
      mapping: field values, as read from YAML.
      where: dotted path of the mapping, for messages.

    Raises:
      ValueError: names the key, its value, and what was expected.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            guess = f'; did you mean {where + close[0]!r}?' if close else ''
            raise ValueError(
                f'unknown config key {where + str(key)!r}: known keys are '
                f'{", ".join(sorted(fields))}{guess}'
            )
    values = {k: _coerce(hints[k], v, where + k) for k, v in mapping.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(
            f'config key {where + missing[0]!r} is missing: set it in the file or with '
            f'--set {where}{missing[0]}=VALUE'
        )
    return cls(**values)


def as_dict(config: Any) -> Any:
    """A dataclass (or nested container) as JSON-ready values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): as_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_dict(value) for value in config]
    return config


def fingerprint(value: Any) -> str:
    """SHA-256 (hex, 32 digits) of the canonical JSON of a config or a nested container."""
    text = json.dumps(as_dict(value), sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ValueError(f'config key {where!r} is {value!r}: must be a mapping')
        return from_dict(hint, value, where + '.')
    if origin is tuple:
        return _coerce_tuple(hint, value, where)
    if origin is Mapping and isinstance(value, Mapping):
        inner = typing.get_args(hint)[1]
        return {key: _coerce(inner, item, f'{where}.{key}') for key, item in value.items()}
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            allowed = ', '.join(map(repr, typing.get_args(hint)))
            raise ValueError(f'config key {where!r} is {value!r}: must be one of {allowed}')
        return value
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str) and re.fullmatch(r'[-+]?\d+[eE][-+]?\d+', value):
        return float(value)  # To YAML, 1e-3 is a text and only 1.0e-3 is a number.
    expected = origin or hint
    if isinstance(expected, type) and (
        not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)
    ):
        hint = f'; give it, for example with --set {where}=VALUE' if value is None else ''
        raise ValueError(
            f'config key {where!r} is {value!r}: must be of type {expected.__name__}{hint}'
        )
    return value


def _coerce_union(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint)
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    for option in rest[:-1]:
        try:
            return _coerce(option, value, where)
        except ValueError:
            continue
    return _coerce(rest[-1], value, where)


def _coerce_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    args = typing.get_args(hint)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f'config key {where!r} is {value!r}: must be a list')
    if args[-1] is Ellipsis:
        return tuple(_coerce(args[0], v, f'{where}[{i}]') for i, v in enumerate(value))
    if len(value) != len(args):
        raise ValueError(f'config key {where!r} is {value!r}: must have {len(args)} values')
    return tuple(
        _coerce(a, v, f'{where}[{i}]') for i, (a, v) in enumerate(zip(args, value, strict=True))
    )
