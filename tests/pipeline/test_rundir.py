"""The run directory: its record, resume and its lock."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.rundir import LAYOUT_VERSION, RunDirectory, inputs_digest, write_atomically


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_making_the_object_touches_nothing(run: RunDirectory):
    assert not run.path.exists() and run.read() == {}


def test_a_stage_records_counts_failures_and_versions(run: RunDirectory):
    with run.stage("crawl", "a") as stage:
        stage.count_in, stage.count_out = 5, 2
        stage.fail("timeout")
        stage.fail("empty_file", 2)
        stage.note(hosts=3)
    record = json.loads(run.record_path.read_text())
    assert record["layout"] == LAYOUT_VERSION
    assert record["versions"]["torch"] and record["versions"]["psnet"]
    crawl = record["stages"]["crawl"]
    assert (crawl["in"], crawl["out"], crawl["failed"], crawl["hosts"]) == (
        5,
        2,
        {"empty_file": 2, "timeout": 1},
        3,
    )
    assert crawl["done"] and crawl["seconds"] >= 0


def test_a_finished_stage_is_skipped_while_inputs_and_outputs_are_the_same(run: RunDirectory):
    output = run.pairs_path

    def finished(digest: str) -> bool:
        again = RunDirectory(run.path)
        with again.stage("match", digest, [output]) as stage:
            if not stage.finished:
                output.write_text("pairs")
        assert again.finished_before == (["match"] if stage.finished else [])
        return stage.finished

    assert [finished("a"), finished("a"), finished("b"), finished("b")] == [False, True, False, True]
    output.unlink()
    assert [finished("b"), finished("b")] == [False, True]


def test_a_skipped_stage_keeps_its_record(run: RunDirectory):
    with run.stage("match", "a") as stage:
        stage.count_in = 3
    before = run.record_path.read_bytes()
    with run.stage("match", "a"):
        pass
    assert run.record_path.read_bytes() == before


@pytest.mark.parametrize("error", [ValueError("broken\nin two lines"), KeyboardInterrupt()])
def test_a_failed_stage_is_not_done_and_its_time_counts(run: RunDirectory, error: BaseException):
    with pytest.raises(type(error)), run.stage("match", "a"):
        raise error
    record = run.stage_record("match")
    assert not record["done"] and "\n" not in record["error"]
    with run.stage("match", "a") as stage:
        assert not stage.finished
    again = run.stage_record("match")
    assert again["done"] and "error" not in again and again["seconds"] >= record["seconds"]


def test_what_a_run_gave_is_stale_until_a_new_start_has_come_so_far(run: RunDirectory):
    def through(*names: str, **digests: str) -> None:
        run.begin(**digests)
        for name in names:
            with run.stage(name, "same" if name != "match" else digests["input_digest"]):
                pass

    old = {"input_digest": "a", "config_digest": "c"}
    through("crawl", "match", "judge", **old)
    run.require_current("judge")
    run.begin(**old)
    run.require_current("judge")
    through("crawl", "match", **{**old, "input_digest": "b"})
    run.require_current("match")
    assert run.require("judge")
    with pytest.raises(UserError, match="stage judge gave is of an earlier input"):
        run.require_current("judge")
    with run.stage("judge", "same") as stage:
        assert stage.finished
    run.require_current("judge")
    # A stage by hand, without a new start.
    with run.stage("match", "other"):
        pass
    with pytest.raises(UserError, match="stage judge gave"):
        run.require_current("judge")
    with run.stage("index", "by hand"):
        pass
    run.require_current("match")


def test_stages_stand_in_the_order_of_the_data_flow(run: RunDirectory):
    for name in ("report", "crawl", "match"):
        with run.stage(name, "a"):
            pass
    assert list(run.read()["stages"]) == ["crawl", "match", "report"]


def test_require_names_the_command_that_is_missing(run: RunDirectory):
    with pytest.raises(UserError, match="psnet match"):
        run.require("judge")
    with run.stage("judge", "a") as stage:
        stage.output_digest = "b"
    assert run.require("judge") == "b"
    with run.stage("crawl", "a"):
        pass
    assert run.require("crawl") == "a"


def test_update_keeps_the_rest(run: RunDirectory):
    run.update(catalogue="x.csv")
    run.update(model_tag="psnet-1")
    record = run.read()
    assert (record["catalogue"], record["model_tag"]) == ("x.csv", "psnet-1")


def test_existing_wants_a_run(tmp_path: Path, run: RunDirectory):
    with pytest.raises(UserError, match="no such run directory"):
        RunDirectory.existing(run.path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a run directory"):
        RunDirectory.existing(tmp_path / "empty")
    run.update(catalogue="x")
    assert RunDirectory.existing(run.path).read()["catalogue"] == "x"


def test_foreign_folders_files_and_layouts_are_refused(tmp_path: Path, run: RunDirectory):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunDirectory(tmp_path / "file")
    with pytest.raises(UserError, match="neither empty"):
        RunDirectory(tmp_path)
    run.update(layout=LAYOUT_VERSION + 1)
    with pytest.raises(UserError, match=f"layout {LAYOUT_VERSION + 1}"):
        RunDirectory(run.path)
    run.record_path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        RunDirectory(run.path)


def test_a_parent_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError), RunDirectory(tmp_path / "file" / "run").lock():
        pass


def test_two_drivers_cannot_work_at_once(run: RunDirectory):
    other = RunDirectory(run.path)
    refused = pytest.raises(UserError, match="being worked on by process")
    with run.lock(), run.lock(), refused, other.stage("match", "a"):
        pass
    with other.stage("match", "a"):
        pass


def test_the_lock_of_a_killed_driver_is_free(run: RunDirectory):
    code = (
        "import sys, time\nfrom pipeline.rundir import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).stage('match', 'a'):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=f"process {driver.pid}"), run.lock():
            pass
        driver.send_signal(signal.SIGKILL)
    with run.stage("match", "a") as stage:
        assert not stage.finished


def test_a_run_travels_as_its_path(run: RunDirectory):
    with run.lock():
        assert pickle.loads(pickle.dumps(run)).path == run.path


def test_atomic_writing_leaves_nothing_behind(tmp_path: Path):
    write_atomically(tmp_path / "a" / "b.txt", b"one")
    write_atomically(tmp_path / "a" / "b.txt", b"two")
    (tmp_path / "a" / "folder").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "a" / "folder", b"three")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.txt", "folder"]
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"two"


def test_inputs_digest_depends_on_order_and_boundaries():
    digests = {inputs_digest("a", "b"), inputs_digest("b", "a"), inputs_digest("ab"), inputs_digest("ab", "")}
    assert len(digests) == 4
