"""Weights on disk: a folder with model.json and one safetensors file per part. Nothing is ever unpickled.

model.json holds the configuration, the calibration of the verdict, the region weights and where the weights
come from. Matrices are float16; vectors (norms, biases) stay float32, where a running variance may exceed
float16.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from psnet.comparison import RegionComparison
from psnet.config import ConfigError, as_dict, load_config
from psnet.group_head import GroupHead
from psnet.model import PSNet, PSNetConfig
from psnet.verdict import Calibration

SHIPPED = Path(__file__).with_name("pretrained")
PARTS = ("detector", "landmarks", "retrieval")
COMPARISON_FILE = "comparison.safetensors"
"""Of `psnet.comparison.RegionComparison`; features do not depend on it, and weights may come without."""
GROUPS_FILE = "groups.safetensors"
"""Of `psnet.group_head.GroupHead`, which weights may come without."""
FORMAT = 1


class WeightsError(ValueError):
    """A weights folder that cannot be used; the message says which, why and how to mend it."""


def _folder(path: str | Path | None) -> Path:
    folder = SHIPPED if path is None else Path(path)
    if folder.is_file():
        folder = folder.parent
    missing = [
        name
        for name in ("model.json", *(f"{part}.safetensors" for part in PARTS))
        if not (folder / name).is_file()
    ]
    if missing:
        raise WeightsError(
            f"{folder}: no psnet weights there ({', '.join(missing)} missing); "
            "name a folder written by `psnet train`"
        )
    return folder


def read_description(path: str | Path | None = None) -> dict[str, Any]:
    """model.json of a weights folder (None: the shipped ones). Raises WeightsError."""
    file = _folder(path) / "model.json"
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{file}: cannot be read ({error})") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise WeightsError(
            f"{file}: format {found!r}, this version reads {FORMAT}; use weights made by this version"
        )
    return description


def _config(path: str | Path | None) -> PSNetConfig:
    try:
        return load_config(PSNetConfig, read_description(path)["config"])
    except (ConfigError, ValueError, KeyError) as error:
        raise WeightsError(f"{_folder(path) / 'model.json'}: {error}") from error


def read_calibration(path: str | Path | None = None) -> Calibration:
    """The calibration of a weights folder (None: the shipped one), the default one of a folder without any.

    Raises:
        WeightsError: no weights, or a calibration that cannot be read.
    """
    stored = read_description(path).get("calibration")
    try:
        return Calibration.default() if stored is None else Calibration.from_json(json.dumps(stored))
    except ValueError as error:
        raise WeightsError(f"{_folder(path) / 'model.json'}: {error}") from None


def read_learnt_weights(path: str | Path | None, name: str) -> np.ndarray:
    """(4, 5) float32 region weights that `psnet train region-weights` learnt in the way ``name``.

    Raises:
        WeightsError: no weights, or none were learnt in this way.
    """
    try:
        table = read_description(path)["region_weights"]["tables"][name]
    except KeyError:
        file = _folder(path) / "model.json"
        raise WeightsError(f"{file}: no region weights {name!r}; run `psnet train region-weights`") from None
    return np.array(table, np.float32)


def model_tag(path: str | Path | None = None) -> str:
    """ "psnet-" and ten hex digits of the weights' content: features of two models never mix."""
    folder = _folder(path)
    digest = hashlib.sha256()
    # The calibration does not touch the features, so it is no part of the tag; the configuration is.
    digest.update(json.dumps(read_description(folder)["config"], sort_keys=True).encode())
    for part in PARTS:
        digest.update((folder / f"{part}.safetensors").read_bytes())
    groups = folder / GROUPS_FILE
    if groups.is_file():
        digest.update(groups.read_bytes())
    return f"psnet-{digest.hexdigest()[:10]}"


def load_psnet(path: str | Path | None = None) -> PSNet:
    """The network with its weights, in float32, ready for inference. Raises WeightsError."""
    folder = _folder(path)
    config = _config(folder)
    try:
        model = PSNet(config)
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{folder / 'model.json'}: {error}") from error
    for part in PARTS:
        file = folder / f"{part}.safetensors"
        load_part(getattr(model, part), file)
    return model.eval()


def load_group_head(path: str | Path | None = None) -> GroupHead | None:
    """The second opinion on the group, in float32; None where the folder has none. Raises WeightsError."""
    file = _folder(path) / GROUPS_FILE
    if not file.is_file():
        return None
    head = GroupHead(_config(path).feature_dim)
    load_part(head, file)
    return head.eval()


def load_comparison(path: str | Path | None = None) -> RegionComparison | None:
    """The network that compares registered photographs, in float32, ready for inference; None where
    the folder has none. Raises WeightsError."""
    folder = _folder(path)
    file = folder / COMPARISON_FILE
    if not file.is_file():
        return None
    config = _config(folder)
    model = RegionComparison(config.region_width, config.region_side)
    load_part(model, file)
    return model.eval()


def comparison_digest(path: str | Path | None = None) -> str:
    """Ten hex digits of the comparison network's weights, "" of a folder without one."""
    file = _folder(path) / COMPARISON_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest()[:10] if file.is_file() else ""


def load_part(module: torch.nn.Module, file: Path) -> None:
    """One part's weights, as `save_part` wrote them, into ``module`` in float32. Raises WeightsError."""
    try:
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()}
        module.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{file}: weights of another model or damaged ({reason}); "
            "use the folder `psnet train` wrote as a whole"
        ) from error


def save_part(module: torch.nn.Module, file: Path) -> None:
    """One part's weights, matrices in float16."""
    state = {
        k: (v.half() if v.is_floating_point() and v.ndim > 1 else v).contiguous().cpu()
        for k, v in module.state_dict().items()
    }
    temporary = file.with_name(file.name + ".tmp")
    save_file(state, temporary)
    os.replace(temporary, file)


def save_description(folder: Path, config: PSNetConfig, more: Mapping[str, Any]) -> None:
    """model.json: the configuration and ``more`` (calibration, region_weights, provenance)."""
    description = {"format": FORMAT, "config": as_dict(config), **more}
    temporary = folder / "model.json.tmp"
    temporary.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "model.json")


def save_psnet(model: PSNet, folder: Path, more: Mapping[str, Any] | None = None) -> None:
    """Write the whole network to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        save_part(getattr(model, part), folder / f"{part}.safetensors")
    save_description(folder, model.config, more or {})
