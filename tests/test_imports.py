"""psnet <- pipeline <- flows: who may import what, read from the sources."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OURS = {"psnet", "pipeline", "flows"}

# What psnet may need beside the standard library, so that it trains and runs on a bare GPU box.
PSNET_LIBRARIES = {
    "torch", "torchvision", "timm", "numpy", "PIL", "pandas", "yaml", "safetensors", "scipy", "cv2",
}  # fmt: skip
HOME_OF = {
    "prefect": "flows",
    "ray": "pipeline",
    "faiss": "pipeline",
    "pyarrow": "pipeline",
    "boto3": "pipeline",
}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level names that a module imports anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield (node.module or "").split(".")[0], node.lineno


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def offences(package: str, allowed: set[str] | None, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules(package)
        for name, line in imported(path)
        if name in forbidden
        or (allowed is not None and name not in allowed | {package} | set(sys.stdlib_module_names))
    ]


def test_psnet_knows_images_and_tensors_only() -> None:
    assert modules("psnet")
    assert not offences("psnet", PSNET_LIBRARIES, OURS - {"psnet"})


def test_pipeline_knows_no_flows() -> None:
    assert modules("pipeline")
    assert not offences("pipeline", None, {"flows", "prefect"})


def test_flows_leave_the_engines_to_the_pipeline() -> None:
    assert modules("flows")
    assert not offences("flows", None, {"ray", "faiss", "pyarrow", "boto3", "torch"})


@pytest.mark.parametrize(("library", "package"), HOME_OF.items())
def test_every_engine_is_used_at_home(library: str, package: str) -> None:
    assert any(name == library for path in modules(package) for name, _ in imported(path))


def test_no_second_reader_of_configuration() -> None:
    readers = [
        str(path.relative_to(ROOT))
        for package in ("pipeline", "flows")
        for path in modules(package)
        if any(name == "yaml" for name, _ in imported(path))
    ]
    assert not readers
