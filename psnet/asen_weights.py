"""ASEN's weights on disk: asen.json and asen.safetensors in a folder, or a checkpoint of the authors.

asen.json holds the configuration, the cosine from which two garments agree in an attribute, and where the
weights come from. A checkpoint (``.pth``, ``.pth.tar``) is read without unpickling anything but tensors.

``python -m psnet.asen_weights CHECKPOINT META DATASET OUT`` converts one.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psnet.asen import AsenConfig, AttributeNetwork, build_asen
from psnet.config import ConfigError, Parser, as_dict, load_config
from psnet.data.attributes import AttributeDataError, read_meta
from psnet.weights import SHIPPED, WeightsError, load_part, save_part

FORMAT = 1
_DESCRIPTION, _TENSORS = "asen.json", "asen.safetensors"
# What wraps the network in the authors' checkpoints: their triplet network, and data parallelism.
_WRAPPERS = ("module.", "embeddingnet.")
# Their trunk keeps ResNet-50's last stage and classifier, which nothing uses.
_UNUSED = ("backbonenet.layer4.", "backbonenet.fc.")


def save_asen(
    model: AttributeNetwork,
    folder: Path,
    thresholds: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the network, matrices in float16. ``thresholds``: see `read_asen`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_part(model, folder / _TENSORS)
    description = {
        "format": FORMAT,
        "config": as_dict(model.config),
        "thresholds": dict(thresholds or {}),
        "provenance": dict(provenance or {}),
    }
    temporary = folder / f"{_DESCRIPTION}.tmp"
    temporary.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / _DESCRIPTION)


def read_asen(path: str | Path | None = None) -> dict[str, Any]:
    """asen.json of a folder (None: the shipped one): ``config``, ``provenance``, ``thresholds``, attribute
    -> cosine from which two garments agree. Raises WeightsError."""
    folder = SHIPPED if path is None else Path(path)
    file = folder / _DESCRIPTION
    try:
        description: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{folder}: no ASEN weights there ({_DESCRIPTION} missing); name a folder written by "
            "`psnet train asen` or `python -m psnet.asen_weights`"
        ) from None
    except (ValueError, OSError) as error:
        raise WeightsError(f"{file}: cannot be read ({error})") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise WeightsError(f"{file}: not of format {FORMAT}; use weights made by this version")
    return description


def load_asen(path: str | Path | None = None) -> AttributeNetwork:
    """The network with its weights in float32, ready for inference (None: the shipped one). Raises
    WeightsError."""
    folder = SHIPPED if path is None else Path(path)
    try:
        model = build_asen(load_config(AsenConfig, read_asen(folder)["config"]))
    except (ConfigError, ValueError, KeyError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{folder / _DESCRIPTION}: {error}") from error
    load_part(model, folder / _TENSORS)
    return model.eval()


def asen_tag(path: str | Path | None = None) -> str:
    """ "asen-" and ten hex digits of the weights' content: embeddings of two models never mix."""
    folder = SHIPPED if path is None else Path(path)
    digest = hashlib.sha256(json.dumps(read_asen(folder)["config"], sort_keys=True).encode())
    try:
        digest.update((folder / _TENSORS).read_bytes())
    except OSError as error:
        raise WeightsError(f"{folder / _TENSORS}: cannot be read ({error.strerror or error})") from None
    return f"asen-{digest.hexdigest()[:10]}"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of the authors under the network's own names. Raises WeightsError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: no checkpoint that holds tensors alone ({reason})") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: no state dict in this checkpoint; needed: names and tensors")
    out = {}
    for name, value in state.items():
        while wrapper := next((w for w in _WRAPPERS if name.startswith(w)), None):
            name = name.removeprefix(wrapper)
        if not name.startswith(_UNUSED):
            out[name] = value
    return out


def load_checkpoint(
    path: Path, attributes: Sequence[str], values: Mapping[str, Sequence[str]]
) -> AttributeNetwork:
    """The network of a checkpoint of the authors, v1 or v2 as its parameters say, for images of 224 px.

    Args:
        attributes: their names, in the order of the data set's meta.json; ``values`` of each.

    Raises:
        WeightsError: the checkpoint cannot be read, or is not of an ASEN with so many attributes.
    """
    state = read_checkpoint(path)
    table = {"v1": "mask_fc1.weight", "v2": "attr_embedding.weight"}
    variant = next((v for v, name in table.items() if name in state), None)
    if variant is None:
        raise WeightsError(f"{path}: neither {table['v1']} (v1) nor {table['v2']} (v2) is there; not an ASEN")
    shape = state[table[variant]].shape
    count = shape[1] if variant == "v1" else shape[0]
    if count != len(attributes):
        raise WeightsError(
            f"{path}: {count} attributes, but {len(attributes)} named; use its data set's meta.json"
        )
    config = load_config(
        AsenConfig,
        {
            "method": variant,
            "attributes": list(attributes),
            "values": {name: list(known) for name, known in values.items()},
        },
    )
    model = build_asen(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise WeightsError(f"{path}: not the parameters of ASEN {variant} ({reason})") from None
    return model.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 with one line on stderr."""
    parser = Parser(
        prog="python -m psnet.asen_weights",
        description="Convert a checkpoint of ASEN's authors to safetensors.",
    )
    parser.add_argument("checkpoint", type=Path, help=".pth or .pth.tar of variant v1 or v2")
    parser.add_argument("root", type=Path, help="folder with the authors' meta.json")
    parser.add_argument("dataset", help="the data set that it was trained on, as in meta.json")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args(argv)
    try:
        meta = read_meta(arguments.root, arguments.dataset)
        model = load_checkpoint(
            arguments.checkpoint, meta.names, dict(zip(meta.names, meta.values, strict=True))
        )
        save_asen(model, arguments.out, provenance={"checkpoint": arguments.checkpoint.name})
    except (WeightsError, AttributeDataError, OSError) as error:
        print(f"psnet.asen_weights: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
