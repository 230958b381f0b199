"""Strict configuration: what fits is taken, what does not is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from psnet.config import ConfigError, as_dict, bounded, digest, load_config


@dataclass(frozen=True)
class Engine:
    power: float = bounded(1.5, 0.0, 10.0)
    threads: int = bounded(2, 1, result=False)
    kind: Literal["petrol", "steam"] = "petrol"
    oil: str | None = None


@dataclass(frozen=True)
class Car:
    engine: Engine = field(default_factory=Engine)
    name: str = "car"
    wheels: tuple[float, float] = (1.0, 2.0)
    parts: tuple[str, ...] = ()
    limits: dict[str, tuple[float, float]] | None = None
    manual: Path | None = None
    fast: bool = False


def message(*layers, overrides=()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Car, *layers, overrides=overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def written(folder: Path, text: str) -> Path:
    path = folder / "car.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_later_layers_win_key_by_key(tmp_path: Path):
    path = written(tmp_path, "engine:\n  power: 3\n  kind: steam\nparts: [door]\n")
    car = load_config(Car, {"engine": {"power": 2, "oil": "heavy"}}, path, overrides=["engine.power=1e-1"])
    assert car == Car(Engine(power=0.1, kind="steam", oil="heavy"), parts=("door",))
    assert isinstance(load_config(Car, {"engine": {"power": 2}}).engine.power, float)


def test_empty_files_and_sections_change_nothing(tmp_path: Path):
    assert load_config(Car, written(tmp_path, "")) == Car()
    assert load_config(Car, written(tmp_path, "# nothing\nengine:\n")) == Car()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=007", "007"),
        ("name=yes", "yes"),
        ("name=a: [b", "a: [b"),
        ("name=", ""),
        ("name= with space", "with space"),
    ],
)
def test_text_on_the_command_line_needs_no_quotes(override: str, expected: str):
    assert load_config(Car, overrides=[override]).name == expected


def test_null_and_lists_on_the_command_line():
    car = load_config(
        Car,
        {"engine": {"oil": "heavy"}},
        overrides=["engine.oil=null", "wheels=[3, 4]", "limits.rear=[0, 1]", "manual=a/b.pdf"],
    )
    assert car == Car(wheels=(3.0, 4.0), limits={"rear": (0.0, 1.0)}, manual=Path("a/b.pdf"))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("engine.powr=1", ["engine.powr", "is engine.power meant?"]),
        ("powr=1", ["powr", "is engine.power meant?"]),
        ("threads=1", ["is engine.threads meant?"]),
        ("zzz=1", ["zzz", "engine, name, wheels"]),
        ("engine=1", ["engine", "keys of its own"]),
        ("name.x=1", ["name has no keys of its own"]),
        ("engine.threads=two", ["engine.threads", "a whole number", "'two'"]),
        ("engine.threads=1.5", ["a whole number", "1.5"]),
        ("engine.threads=true", ["a whole number", "true"]),
        ("engine.threads=0", ["at least 1", "0"]),
        ("engine.power=11", ["0.0 to 10.0", "11"]),
        ("engine.power=.nan", ["a number"]),
        ("engine.kind=diesel", ["one of petrol, steam", "'diesel'"]),
        ("fast=1", ["true or false", "1"]),
        ("wheels=[1, 2, 3]", ["a list of 2"]),
        ("parts=door", ["a list of text"]),
        ("limits={rear: 1}", ["limits"]),
        ("name", ["section.key=value"]),
        ("engine.power=[1", ["engine.power", "YAML"]),
    ],
)
def test_what_does_not_fit_is_named(override: str, parts: list[str]):
    text = message(overrides=[override])
    assert all(part in text for part in parts), text


def test_errors_in_files_name_the_file(tmp_path: Path):
    assert "car.yaml: unknown key engine.powr" in message(written(tmp_path, "engine: {powr: 1}"))
    assert "line 2" in message(written(tmp_path, "name: a\nname: b\n"))
    assert "'name' stands twice" in message(written(tmp_path, "name: a\nname: b\n"))
    assert "not valid YAML" in message(written(tmp_path, "name: [a\n"))
    assert "holds no keys" in message(written(tmp_path, "- a\n"))
    assert "no such" in message(tmp_path / "other.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert "not UTF-8" in message(tmp_path / "latin.yaml")
    assert "expected text, got 7" in message(written(tmp_path, "name: 7"))


def test_values_survive_the_round_trip_through_plain_values():
    car = Car(Engine(oil="x"), limits={"a": (1.0, 2.0)}, manual=Path("m"), parts=("a", "b"))
    assert load_config(Car, as_dict(car)) == car


def test_digests_tell_results_from_speed():
    assert digest(Car()) == digest(Car()) and len(digest(Car())) == 12
    slow = Car(Engine(threads=1))
    assert digest(slow) != digest(Car())
    assert digest(slow, results_only=True) == digest(Car(), results_only=True)
    assert digest(Car(fast=True), results_only=True) != digest(Car(), results_only=True)
