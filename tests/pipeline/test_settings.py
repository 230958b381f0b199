"""The settings and the files of conf/."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.settings import Settings, load_settings
from psnet.config import as_dict

CONF = Path(__file__).parents[2] / "conf"


def test_default_yaml_holds_every_key_with_its_default():
    assert yaml.safe_load((CONF / "default.yaml").read_text()) == as_dict(Settings())


def test_default_yaml_explains_every_key():
    lines = (CONF / "default.yaml").read_text().splitlines()
    bare = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if line.strip() and not line.lstrip().startswith("#") and not before.lstrip().startswith("#")
    ]
    assert not bare


def test_default_yaml_marks_the_keys_of_speed():
    marked, comment = set(), ""
    section = ""
    for line in (CONF / "default.yaml").read_text().splitlines():
        if line.lstrip().startswith("#"):
            comment += line
            continue
        key = line.strip().split(":")[0]
        if line and not line.startswith(" "):
            section = f"{key}."
        if "[speed]" in comment and "Keys marked" not in comment:
            marked.add(section + key if line.startswith(" ") else key)
        comment = ""
    declared = {
        f"{section_field.name}.{field.name}"
        for section_field in Settings.__dataclass_fields__.values()
        if hasattr(section := getattr(Settings(), section_field.name), "__dataclass_fields__")
        for field in section.__dataclass_fields__.values()
        if not field.metadata.get("result", True)
    } | {"log_level"}
    assert marked == declared


@pytest.mark.parametrize("name", ["default.yaml", "demo.yaml", "nightly.yaml", "sweep.yaml"])
def test_every_shipped_file_loads(name: str):
    load_settings(CONF / name)


def test_order_of_base_file_and_overrides(tmp_path: Path):
    file = tmp_path / "x.yaml"
    file.write_text("match: {best_k: 30, block_size: 64}")
    settings = load_settings(
        file, ["match.block_size=128"], {"match": {"best_k": 25, "max_pairs_per_item": 7}}
    )
    assert (settings.match.best_k, settings.match.block_size, settings.match.max_pairs_per_item) == (
        30,
        128,
        7,
    )


@pytest.mark.parametrize("override", ["match.region_weights={trousers: [1, 1, 1, 1, 1]}", "match.bestk=3"])
def test_mistakes_are_user_errors(override: str):
    with pytest.raises(UserError):
        load_settings(None, [override])
