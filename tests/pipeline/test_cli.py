"""The command line: its manual, its errors, its signals. Stages have their own tests."""

from __future__ import annotations

import csv
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli, export
from pipeline.errors import RunError, UserError
from pipeline.rundir import LAYOUT_VERSION, RunDirectory
from tests.pipeline.conftest import Shop, jpeg
from tests.pipeline.judged_run import make_run

COMMANDS = (
    "scan", "sweep", "plan", "check", "export", "similar", "crawl", "extract", "index", "match", "report",
    "demo", "eval", "train", "version",
)  # fmt: skip


def psnet(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    code = cli.run_command([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("psnet: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return code, err


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    folder = tmp_path / "catalogue"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    path = folder / "catalogue.csv"
    path.write_text("item_id,image,seller_id\n007,0.jpg,s\n12e456,1.jpg,s\nx,missing.jpg,t\n")
    return path


# --- export


def test_export_cuts_the_list_and_says_what_a_format_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run = str(make_run(tmp_path / "made").path)
    out = tmp_path / "s.csv"
    command = ["export", run, "--format", "csv", "--out", str(out)]
    assert cli.run_command(command) == 0
    assert capsys.readouterr() == (f"{out}\n", "")
    verdicts = [row["relation"] for row in csv.DictReader(out.open(encoding="utf-8-sig"))]
    assert len(verdicts) > verdicts.count("plagiarised") > 1

    assert cli.run_command([*command, "--relation", "plagiarised", "--relation", "identical"]) == 0
    chosen = [row["relation"] for row in csv.DictReader(out.open(encoding="utf-8-sig"))]
    assert chosen == [verdict for verdict in verdicts if verdict in ("plagiarised", "identical")]
    assert cli.run_command([*command, "--relation", "plagiarised", "--limit", "1"]) == 0
    assert [row["relation"] for row in csv.DictReader(out.open(encoding="utf-8-sig"))] == ["plagiarised"]
    # What was asked for is not left out.
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(export, "HTML_SUSPECTS", 1)
    assert cli.run_command(["export", run, "--format", "html", "--out", str(tmp_path / "s.html")]) == 0
    assert f"{len(verdicts) - 1} more suspects are left out: html holds 1" in capsys.readouterr().err

    code, line = failure(capsys, *command, "--relation", "plagiarized")
    assert code == 2 and "did you mean plagiarised" in line
    code, line = failure(capsys, *command, "--limit", "0")
    assert code == 2 and "limit 0" in line


# --- the manual


def test_the_manual_names_every_command_and_exit_code():
    text = CliRunner().invoke(cli.app, ["--help"]).output
    assert all(re.search(rf"^  {command}\b", text, re.MULTILINE) for command in COMMANDS)
    assert all(word in text for word in ("item_id", "seller_id", "--set", "130", "psnet scan"))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("train", "version")])
def test_every_command_has_an_example(command: str):
    text = CliRunner().invoke(cli.app, [command, "--help"]).output
    assert f"psnet {command} " in text


def test_help_comes_at_once():
    code = (
        "import sys, pipeline.cli\n"
        "try: pipeline.cli.main(['--help'])\n"
        "finally: print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "pyarrow", "faiss", "numpy", "boto3"} & set(
        re.findall(r"'(\w+)'", done.stderr)
    )


def test_a_table_holds_what_somebody_wrote(capsys: pytest.CaptureFixture[str]):
    cell = "Blouse [/weiss] [red] " + "x" * 200
    cli._print_table("[a] of b", ["item", "title"], [["sku[a]999", cell]])
    said = capsys.readouterr().out
    assert cell in said and "sku[a]999" in said and "[a] of b" in said


def test_version():
    assert psnet("version").stdout.startswith("psnet ")


def test_train_hands_its_arguments_on(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        cli.run_command(["train", "--help"])
    assert left.value.code == 0 and "retrieval" in capsys.readouterr().out


def test_eval_hands_its_arguments_on(capsys: pytest.CaptureFixture[str]):
    assert cli.run_command(["eval", "retrieval", "--set", "benchmarkz={}"]) == 2
    assert "benchmarks" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        cli.run_command(["eval", "ablation", "--help"])
    assert left.value.code == 0 and "plagiarism" in capsys.readouterr().out


def test_every_part_of_the_evaluation_is_a_command():
    from psnet.evaluation.__main__ import PARTS

    text = CliRunner().invoke(cli.app, ["eval", "--help"]).output
    assert all(re.search(rf"^  {part}\b", text, re.MULTILINE) for part in (*PARTS, "run"))


# --- mistakes: exit code 2 and one line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["scan"], ["CATALOGUE", "psnet scan --help"]),
        (["scan", "x.csv"], ["--out"]),
        (["scan", "x.csv", "--out", "r", "--sett", "a=1"], ["--sett", "--set"]),
        (["skan"], ["skan", "scan"]),
        (["export", "r", "--format", "docx", "--out", "f"], ["docx", "xlsx"]),
        (["demo", "--out", "d", "--garments", "many"], ["--garments", "psnet demo --help"]),
        (["scan", "x.csv", "--out", "r", "--set", "match.bestk=3"], ["match.bestk", "match.best_k"]),
        (["scan", "x.csv", "--out", "r", "--set", "match.best_k=no"], ["match.best_k", "whole number"]),
        (["scan", "x.csv", "--out", "r", "--config", "nowhere.yaml"], ["nowhere.yaml", "no such"]),
        (["crawl", "nowhere.csv", "--out", "r"], ["nowhere.csv"]),
        (["extract", "nowhere"], ["nowhere", "psnet scan"]),
        (["eval", "run", "nowhere", "truth.csv"], ["nowhere"]),
        (["eval", "runn"], ["runn", "psnet eval --help"]),
    ],
)
def test_mistakes_in_the_command(
    arguments: list[str],
    parts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    code, line = failure(capsys, *arguments)
    assert code == 2
    assert all(part in line for part in parts), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"item_id,image,seller_id\n", "no rows"),
        (b"item_id,picture,seller_id\n1,a.jpg,s\n", "image"),
        (b"item_id,image,seller_id\n1,a.jpg,s\n1,b.jpg,s\n", "duplicate"),
        (b"\xff\xd8\xff\xe0", "picture"),
    ],
)
def test_mistakes_in_the_catalogue(
    content: bytes, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "catalogue.csv").write_bytes(content)
    code, line = failure(capsys, "crawl", tmp_path / "catalogue.csv", "--out", tmp_path / "run")
    assert code == 2 and part in line
    assert not (tmp_path / "run").exists()


def test_run_directories_that_cannot_be_used(
    catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code, line = failure(capsys, "crawl", catalogue, "--out", catalogue.parent)
    assert code == 2 and "neither empty nor a run directory" in line
    old = RunDirectory(tmp_path / "old")
    old.update(layout=LAYOUT_VERSION + 1)
    code, line = failure(capsys, "crawl", catalogue, "--out", old.path)
    assert code == 2 and "layout" in line
    swept = RunDirectory(tmp_path / "swept")
    swept.update(kind="sweep")
    code, line = failure(capsys, "crawl", catalogue, "--out", swept.path)
    assert code == 2 and "holds a sweep" in line
    code, line = failure(capsys, "extract", swept.path)
    assert code == 2 and "psnet crawl" in line
    with swept.lock():
        code, line = failure(capsys, "extract", swept.path)
        assert code == 2 and "being worked on" in line


# --- failed runs: exit code 1 and one line


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (RunError("the network is down"), "the network is down"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "the disk is full (/data/x)"),
        (OSError(errno.EACCES, "Permission denied", "/data/x"), "/data/x: Permission denied"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_failures_of_the_machine(
    error: Exception,
    part: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(RunDirectory, "existing", fail)
    code, line = failure(capsys, "extract", tmp_path)
    assert code == 1 and part in line


def test_a_full_disk_behind_another_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RunError("items.parquet: cannot be written") from error

    monkeypatch.setattr(RunDirectory, "existing", fail)
    code, line = failure(capsys, "extract", "run")
    assert code == 1 and "the disk is full" in line and "same command" in line


def test_a_bug_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(RunDirectory, "existing", fail)
    with pytest.raises(KeyError):
        cli.run_command(["extract", "run"])


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="needs a file system of its own"
)
def test_a_full_disk_for_real(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        images = tmp_path / "images"
        images.mkdir()
        for number in range(40):
            (images / f"{number}.jpg").write_bytes(jpeg(number))
        done = psnet("crawl", images, "--out", disk / "run")
        assert done.returncode == 1
        assert "the disk is full" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


# --- a stage, and signals


def test_a_stage_ends_with_a_table_and_the_second_time_does_nothing(catalogue: Path, tmp_path: Path):
    first = psnet("crawl", catalogue, "--out", tmp_path / "run")
    assert first.returncode == 0, first.stderr
    assert re.search(r"crawl .* 3 .* 2 .* 1 ", first.stdout) and "1 missing_file" in first.stdout
    record = RunDirectory(tmp_path / "run").read()
    assert record["config_digest"] and record["input_digest"] and record["catalogue"] == str(catalogue)
    again = psnet("crawl", catalogue, "--out", tmp_path / "run")
    assert "unchanged" in again.stdout


def test_later_stages_keep_the_settings_of_the_run(catalogue: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert psnet("crawl", catalogue, "--out", run, "--set", "match.best_k=33").returncode == 0
    with cli._continued(run, None, ["report.image_side=100"]):
        pass
    with pytest.raises(UserError), cli._continued(run, None, ["match.best_k=44"]):
        raise UserError("a mistake that shows later")
    config = RunDirectory(run).read()["config"]
    assert (config["match"]["best_k"], config["report"]["image_side"]) == (33, 100)


def test_a_run_is_continued_from_another_directory(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    overrides = ["extract.weights=../weights", "judge.dismissed=dismissed.csv"]
    command = ["crawl", str(catalogue), "--out", str(tmp_path / "run")]
    assert cli.run_command([*command, *(part for key in overrides for part in ("--set", key))]) == 0
    monkeypatch.chdir(catalogue.parent)
    expected = str(tmp_path / "weights"), str(tmp_path / "here" / "dismissed.csv")
    with cli._continued(tmp_path / "run", None, ["report.image_side=100"]) as (run, settings):
        assert (settings.extract.weights, settings.judge.dismissed) == expected
    config = run.read()["config"]
    assert (config["extract"]["weights"], config["judge"]["dismissed"]) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_continued(number: signal.Signals, code: int, shop: Shop, tmp_path: Path):
    path, run = tmp_path / "catalogue.csv", tmp_path / "run"
    rows = [f"{i},{shop.url}/image/{i},s" for i in range(5)] + [f"h,{shop.url}/hang,s"]
    path.write_text("item_id,image,seller_id\n" + "\n".join(rows))
    # A shell's background job has SIGINT ignored, and so would all that it starts.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "pipeline.cli"]
    command += ["crawl", str(path), "--out", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 60
        while shop.hits["/hang"] == 0 or sum(shop.hits.values()) < 6:
            assert time.monotonic() < deadline and driver.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        driver.send_signal(number)
        started = time.monotonic()
        _, err = driver.communicate(timeout=20)
    assert driver.returncode == code and time.monotonic() - started < 10
    assert "Traceback" not in err
    assert f"same command goes on from there: psnet crawl {path} --out {run}" in err.splitlines()[-1]
    assert not RunDirectory(run).stage_record("crawl")["done"]
    again = psnet(
        "crawl", path, "--out", run, "--set", "crawl.read_timeout_s=0.2", "--set", "crawl.retries=0"
    )
    assert again.returncode == 0, again.stderr
    assert [shop.hits[f"/image/{i}"] for i in range(5)] == [1] * 5
    assert RunDirectory(run).stage_record("crawl")["failed"] == {"timeout": 1}
