"""Strict configuration: nested dataclasses filled from YAML files and ``key=value`` overrides.

The dataclass is the one place of names, types and defaults. What does not fit it is an error that says where
it stands and what was probably meant; nothing is ignored. Understood types: bool, int, float, str, Path,
None, Literal, unions, ``tuple[X, ...]``, ``tuple[X, Y]``, ``list[X]``, ``dict[str, X]`` and dataclasses.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A configuration that does not fit; the message is one line and names the key."""


def bounded(default: Any, low: float | None = None, high: float | None = None, *, result: bool = True) -> Any:
    """A dataclass field whose value must lie in [low, high] (every element of it, for a sequence).

    ``result=False`` marks a key that changes how fast a result is reached, never the result: see ``digest``.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "result": result})


def load_config(
    cls: type[Config], *layers: Mapping[str, Any] | Path | str, overrides: Sequence[str] = ()
) -> Config:
    """Build ``cls`` from its defaults, then each layer, then each override; the later one wins, key by key.

    Args:
        cls: a dataclass; every field has a default.
        layers: mappings, or paths of YAML files. An empty file changes nothing.
        overrides: "section.key=value", the value in YAML. Where text is expected it need not be quoted.

    Raises:
        ConfigError: unreadable or malformed file, unknown or repeated key, wrong type, value out of bounds.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        if isinstance(layer, Mapping):
            source, content = "", layer
        else:
            source, content = f"{layer}: ", _read_yaml(Path(layer))
        _merge(values, _checked(cls, content, source))
    for override in overrides:
        _merge(values, _parse_override(cls, override))
    return _build(cls, values)


class Parser(argparse.ArgumentParser):
    """Says of a mistake what it is in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def add_options(parser: argparse.ArgumentParser, keys: str) -> None:
    """The options ``--config FILE`` and ``--set KEY=VALUE`` for ``load_options``; ``keys`` names the
    dataclass in the help."""
    parser.add_argument("--config", type=Path, help=f"YAML file with the keys of {keys}")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key; may be repeated",
    )


def load_options(cls: type[Config], arguments: argparse.Namespace) -> Config:
    """``load_config`` of what ``add_options`` read. Raises ConfigError."""
    layers = [arguments.config] if arguments.config else []
    return load_config(cls, *layers, overrides=arguments.overrides)


def as_dict(config: Any) -> dict[str, Any]:
    """``config`` as nested mappings of plain YAML and JSON values; ``load_config`` takes them back."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def digest(config: Any, *, results_only: bool = False) -> str:
    """Twelve hexadecimal digits that name the values of ``config``.

    Args:
        config: a dataclass instance.
        results_only: leave out the keys marked ``result=False`` (``bounded``): two configurations that must
            lead to the same result then have the same digest.
    """
    values = _results(config) if results_only else as_dict(config)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


# --- files and overrides


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: a key stands once, and 1e-4 is a number (YAML 1.1 wants 1.0e-4)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_yaml_problem(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds no keys; a configuration is lines of 'key: value'")
    return content


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "malformed"
    return f"{f', line {mark.line + 1}' if mark else ''}: is not valid YAML ({problem})"


def _parse_override(cls: type, override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override is written section.key=value")
    type_, path = _field_type(cls, key)
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        if not _accepts_text(type_):
            raise ConfigError(f"{key}{_yaml_problem(error)}") from None
        value = text
    # "007" and "1.10" are numbers in YAML; where text is wanted, the characters themselves are meant.
    if (
        _accepts_text(type_)
        and not isinstance(value, str)
        and not (value is None and text.strip() and _optional(type_))
    ):
        value = text
    nested: Any = value
    for name in reversed(path):
        nested = {name: nested}
    return _checked(cls, nested, "")


def _field_type(cls: type, key: str) -> tuple[Any, list[str]]:
    type_: Any = cls
    path = key.split(".")
    for depth, name in enumerate(path):
        if typing.get_origin(type_) is dict or dict in [
            typing.get_origin(option) for option in _options(type_)
        ]:
            return Any, path
        if not dataclasses.is_dataclass(type_):
            raise ConfigError(f"{key}: {'.'.join(path[:depth])} has no keys of its own")
        known = typing.get_type_hints(type_)
        if name not in known:
            raise ConfigError(_unknown(cls, ".".join(path[: depth + 1]), ""))
        type_ = known[name]
    return type_, path


# --- checks


def _checked(
    cls: type, content: Mapping[str, Any], source: str, prefix: str = "", root: type | None = None
) -> dict[str, Any]:
    """``content`` with every key known and every value converted to its field's type."""
    root = root or cls
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if name not in fields:
            raise ConfigError(_unknown(root, key, source))
        type_ = hints[name]
        if dataclasses.is_dataclass(type_) and isinstance(type_, type):
            if value is None:  # a section whose keys are all commented out
                continue
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}{key}: expected keys of its own, got {value!r}")
            values[name] = _checked(type_, value, source, f"{key}.", root)
        else:
            values[name] = _convert(type_, value, f"{source}{key}")
            _check_bounds(fields[name], values[name], f"{source}{key}")
    return values


def _unknown(root: type, key: str, source: str) -> str:
    known = list(_keys(root))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        # The right name in the wrong section.
        last = key.rsplit(".", 1)[-1]
        by_name = {name.rsplit(".", 1)[-1]: name for name in known}
        close = [by_name[name] for name in difflib.get_close_matches(last, by_name, n=1, cutoff=0.6)]
    hint = f"is {close[0]} meant?" if close else f"known here: {', '.join(_siblings(root, key))}"
    return f"{source}unknown key {key}; {hint}"


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    for name, type_ in typing.get_type_hints(cls).items():
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(type_) and isinstance(type_, type):
            yield from _keys(type_, f"{prefix}{name}.")


def _siblings(cls: type, key: str) -> list[str]:
    type_: Any = cls
    for name in key.split(".")[:-1]:
        type_ = typing.get_type_hints(type_)[name]
    return list(typing.get_type_hints(type_))


def _convert(type_: Any, value: Any, key: str) -> Any:
    for option in _options(type_):
        converted = _try(option, value)
        if converted is not _NO:
            return converted
    raise ConfigError(f"{key}: expected {_describe(type_)}, got {_shown(value)}")


_NO = object()


def _try(type_: Any, value: Any) -> Any:
    """``value`` as ``type_``, or ``_NO``."""
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if type_ is Any:
        return value
    if origin is typing.Literal:
        return next((choice for choice in arguments if choice == value and type(choice) is type(value)), _NO)
    if origin in (tuple, list):
        return _try_sequence(origin, arguments, value)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            return _NO
        items = {key: _try_any(arguments[1], element) for key, element in value.items()}
        return _NO if _NO in items.values() else items
    if type_ is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else _NO
    if type_ is Path and isinstance(value, str | Path):
        return Path(value)
    # bool is an int to Python and a mistake to everybody else.
    return value if type(value) is type_ else _NO


def _try_sequence(origin: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return _NO
    if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
        expected = [arguments[0]] * len(value)
    else:
        expected = list(arguments)
    if len(expected) != len(value):
        return _NO
    elements = [_try_any(type_, element) for type_, element in zip(expected, value, strict=True)]
    return _NO if any(element is _NO for element in elements) else origin(elements)


def _try_any(type_: Any, value: Any) -> Any:
    return next(
        (found for found in (_try(option, value) for option in _options(type_)) if found is not _NO), _NO
    )


def _check_bounds(field: dataclasses.Field[Any], value: Any, key: str) -> None:
    low, high = field.metadata.get("low"), field.metadata.get("high")
    for number in _numbers(value):
        if (low is not None and number < low) or (high is not None and number > high):
            allowed = (
                f"at least {low}"
                if high is None
                else f"at most {high}"
                if low is None
                else f"{low} to {high}"
            )
            raise ConfigError(f"{key}: must be {allowed}, got {number}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        for element in value.values():
            yield from _numbers(element)
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _numbers(element)


def _options(type_: Any) -> tuple[Any, ...]:
    return (
        typing.get_args(type_)
        if isinstance(type_, types.UnionType) or typing.get_origin(type_) is typing.Union
        else (type_,)
    )


def _optional(type_: Any) -> bool:
    return type(None) in _options(type_)


def _accepts_text(type_: Any) -> bool:
    return any(option in (str, Path) for option in _options(type_))


def _describe(type_: Any) -> str:
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if len(_options(type_)) > 1:
        return " or ".join(_describe(option) for option in _options(type_))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is dict:
        return f"names with {_describe(arguments[1])} each"
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"a list of {_describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} ({', '.join(_describe(argument) for argument in arguments)})"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
        type(None): "null",
    }
    return words.get(type_, str(type_))


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


# --- values


def _merge(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for name, value in layer.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), dict):
            _merge(values[name], value)
        else:
            values[name] = dict(value) if isinstance(value, Mapping) else value


def _build(cls: type[Config], values: Mapping[str, Any]) -> Config:
    hints = typing.get_type_hints(cls)
    arguments = {
        name: _build(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in values.items()
    }
    return cls(**arguments)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    return str(value) if isinstance(value, Path) else value


def _results(config: Any) -> dict[str, Any]:
    return {
        field.name: _results(value)
        if dataclasses.is_dataclass(value := getattr(config, field.name))
        else _plain(value)
        for field in dataclasses.fields(config)
        if field.metadata.get("result", True)
    }
