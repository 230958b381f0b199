"""What a machine without Docker and Kubernetes can say about the files in infra/."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    """Name to exact version, from the constraints file."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line.split(";")[0].split("#")[0].strip() for line in lines]
    return {
        name.strip().lower(): version.strip() for name, version in (pin.split("==") for pin in pins if pin)
    }


# --- Dockerfile -----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, list[str]]]:
    """The Dockerfile's instructions: keyword and words, continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], shlex.split(line.partition(" ")[2])) for line in lines]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build context (the last rule that fits wins)."""
    verdict = False
    for rule in (REPOSITORY / ".dockerignore").read_text().split("\n"):
        if not rule or rule.startswith("#"):
            continue
        keep, pattern = rule.startswith("!"), rule.lstrip("!").rstrip("/")
        if pattern == "*" or path == pattern or path.startswith(f"{pattern}/"):
            verdict = not keep
    return verdict


def test_dockerfile_passes_hadolint() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", INFRA / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_dockerfile_stages_build_on_each_other() -> None:
    stages: list[str] = []
    bases: list[str] = []
    for keyword, words in instructions():
        if keyword == "FROM":
            base, _, stage = words
            assert base in stages or re.fullmatch(r"python:3\.\d+-slim-\w+", base)
            bases.append(base)
            stages.append(stage)
        elif keyword == "COPY":
            sources = [word.removeprefix("--from=") for word in words if word.startswith("--from=")]
            assert all(source in stages for source in sources)
    assert {"cpu", "cuda"} <= set(stages)
    assert len({base for base in bases if base.startswith("python:")}) == 1


def test_dockerfile_copies_what_exists_and_is_in_the_build_context() -> None:
    copied = []
    for keyword, words in instructions():
        if keyword == "COPY" and not any(word.startswith("--from=") for word in words):
            copied += [word for word in words if not word.startswith("--")][:-1]
    assert {"psnet/", "pipeline/", "flows/", "conf/", "constraints.txt"} <= set(copied)
    for source in copied:
        assert (REPOSITORY / source).exists(), source
        assert not ignored(source.rstrip("/")), source
    assert ignored("runs") and ignored(".git") and ignored("tests/infra/test_infra.py")


def test_dockerfile_python_is_one_the_project_supports() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    minimum = tuple(int(part) for part in re.findall(r"\d+", project["requires-python"])[:2])
    version = re.search(r"python:(\d+)\.(\d+)-", (INFRA / "Dockerfile").read_text())
    assert version and tuple(int(part) for part in version.groups()) >= minimum


def test_dockerfile_installs_exact_versions_and_does_not_run_as_root() -> None:
    steps = instructions()
    installs = [
        words for keyword, words in steps if keyword == "RUN" and "install" in words and "pip" in words
    ]
    assert installs and all("--constraint" in words or "--no-deps" in words for words in installs)
    last_user = [words for keyword, words in steps if keyword == "USER"][-1]
    assert last_user not in (["root"], ["0"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["scan", "a b.csv", "--out", "run"], "psnet|scan|a b.csv|--out|run"),
        ([], "psnet"),
        (["--help"], "psnet|--help"),
        (["ray", "start", "--head"], "ray|start|--head"),
        (["prefect", "flow-run", "execute"], "prefect|flow-run|execute"),
        (["bash", "-c", "echo $0"], "bash|-c|echo $0"),
    ],
)
def test_entrypoint_runs_psnet_unless_a_cluster_program_is_named(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    for program in ("psnet", "ray", "prefect", "bash"):
        stand_in = tmp_path / program
        stand_in.write_text(
            '#!/bin/sh\nprintf %s "$(basename "$0")"\nfor word; do printf "|%s" "$word"; done\n'
        )
        stand_in.chmod(0o755)
    shell = shutil.which("sh")
    assert shell
    done = subprocess.run(
        [shell, str(INFRA / "entrypoint.sh"), *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == expected


# --- Ray cluster launcher -------------------------------------------------------------------------


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "ray-cluster.yaml").read_text())


def test_cluster_file_passes_rays_own_validation(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)  # merges the provider's defaults, as `ray up` does
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == set(cluster["available_node_types"])
    # Ray's default commands would install another Ray over the image's.
    assert not any("pip install" in command for command in prepared["head_setup_commands"])
    assert not any("pip install" in command for command in prepared["worker_setup_commands"])


def test_cluster_asks_every_node_for_a_token(cluster: dict[str, Any]) -> None:
    options = cluster["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    path = next(option.partition("=")[2] for option in options if "RAY_AUTH_TOKEN_PATH" in option)
    mount = next(option.split()[1] for option in options if option.startswith("--volume"))
    host, _, container = mount.partition(":")
    assert any(path.replace(container, host, 1) in command for command in cluster["initialization_commands"])


def test_cluster_file_has_a_gpu_group_that_scales_from_zero(cluster: dict[str, Any]) -> None:
    groups = [group for group in cluster["available_node_types"].values() if group["resources"].get("GPU")]
    assert groups and all(group["min_workers"] == 0 < group["max_workers"] for group in groups)


# --- KubeRay --------------------------------------------------------------------------------------


@pytest.fixture
def kubernetes_objects() -> dict[str, dict[str, Any]]:
    objects = yaml.safe_load_all((INFRA / "kuberay.yaml").read_text())
    return {item["kind"]: item for item in objects}


def test_raycluster_is_read_by_rays_autoscaler(kubernetes_objects: dict[str, dict[str, Any]]) -> None:
    ray_cluster = kubernetes_objects["RayCluster"]
    assert ray_cluster["apiVersion"] == "ray.io/v1"
    assert ray_cluster["spec"]["enableInTreeAutoscaling"] is True
    # The function that the autoscaler in the head pod calls; it validates what it derives.
    autoscaling = _derive_autoscaling_config_from_ray_cr(ray_cluster)
    groups = autoscaling["available_node_types"]
    assert groups["gpu"]["resources"]["GPU"] == 1
    assert groups["gpu"]["min_workers"] == 0 < groups["gpu"]["max_workers"]
    assert groups["headgroup"]["resources"]["CPU"] == 0


def test_raycluster_is_of_the_pinned_ray(
    kubernetes_objects: dict[str, dict[str, Any]], constraints: dict[str, str]
) -> None:
    assert kubernetes_objects["RayCluster"]["spec"]["rayVersion"] == constraints["ray"]


def test_kubernetes_knows_every_field(kubernetes_objects: dict[str, dict[str, Any]]) -> None:
    spec = kubernetes_objects["RayCluster"]["spec"]
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        for group in groups
    ]
    for item in (kubernetes_objects["Namespace"], kubernetes_objects["PersistentVolumeClaim"], *pods):
        kubernetes_validate.validate(item, "1.34", strict=True)


def test_every_pod_sees_the_shared_directory_and_one_image(
    kubernetes_objects: dict[str, dict[str, Any]],
) -> None:
    claim = kubernetes_objects["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    spec = kubernetes_objects["RayCluster"]["spec"]
    images = set()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        images.add(container["image"])
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["resources"]["limits"] == container["resources"]["requests"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert len(images) == 1
