"""The probe is a real child process; here some of the children die, lie or dawdle."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from psnet import precision
from psnet.precision import PrecisionError, choose_precision, probe


def child(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def reports(ratio: float, error: float = 0.01) -> list[str]:
    return child(f"print('''{json.dumps({'ratio': ratio, 'error': error})}''')")


DIES_OF_SIGILL = child("import os, signal; os.kill(os.getpid(), signal.SIGILL)")


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_known", {})


def test_the_real_probe_answers_on_this_machine():
    found = probe("bfloat16")
    assert found.lasting
    assert (found.works and 0 < found.ratio < math.inf and not found.reason) or found.reason


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (DIES_OF_SIGILL, "float32"),
        (child("raise RuntimeError('no kernel')"), "float32"),
        (child("print('nonsense')"), "float32"),
        (reports(1.3), "float32"),
        (reports(0.5, error=3.0), "float32"),
        (reports(0.5, error=math.inf), "float32"),
        (reports(0.5), "bfloat16"),
    ],
)
def test_auto_on_a_cpu_takes_bfloat16_only_when_it_lives_is_right_and_faster(
    tmp_path: Path, command: list[str], expected: str
):
    assert choose_precision("auto", "cpu", cache=tmp_path / "p.json", command=command) == expected


def test_the_reason_names_the_signal():
    found = probe("bfloat16", DIES_OF_SIGILL)
    assert not found.works and "SIGILL" in found.reason and found.lasting


def test_a_hanging_child_is_ended_and_not_remembered(tmp_path: Path):
    found = probe("bfloat16", child("import time; time.sleep(60)"), timeout_s=0.5)
    assert not found.works and not found.lasting


def test_a_killed_child_says_nothing_about_the_machine(tmp_path: Path):
    cache = tmp_path / "p.json"
    killed = child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert choose_precision("auto", "cpu", cache=cache, command=killed) == "float32"
    assert not cache.exists()


def test_a_named_precision_that_kills_is_refused_and_a_slow_one_is_not(tmp_path: Path):
    with pytest.raises(PrecisionError, match=r"bfloat16.*SIGILL.*float32"):
        choose_precision("bfloat16", "cpu", cache=tmp_path / "a.json", command=DIES_OF_SIGILL)
    assert choose_precision("bfloat16", "cpu", cache=tmp_path / "b.json", command=reports(5.0)) == "bfloat16"


def test_float32_never_starts_a_child(tmp_path: Path):
    assert (
        choose_precision("float32", "cpu", cache=tmp_path / "p.json", command=["/nonexistent"]) == "float32"
    )
    assert not (tmp_path / "p.json").exists()


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(PrecisionError, match=r"float64.*auto, float32, bfloat16, float16"):
        choose_precision("float64")


def test_the_answer_is_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "folder" / "p.json"
    assert choose_precision("auto", "cpu", cache=cache, command=reports(0.5)) == "bfloat16"
    monkeypatch.setattr(precision, "_known", {})
    assert choose_precision("auto", "cpu", cache=cache, command=DIES_OF_SIGILL) == "bfloat16"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": {"works": 1, "nope": 2}}'])
def test_a_damaged_cache_is_written_anew(tmp_path: Path, content: str):
    cache = tmp_path / "p.json"
    cache.write_text(content)
    assert choose_precision("auto", "cpu", cache=cache, command=reports(0.5)) == "bfloat16"
    assert len(json.loads(cache.read_text())) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    cache = tmp_path / "file" / "p.json"
    assert choose_precision("auto", "cpu", cache=cache, command=reports(0.5)) == "bfloat16"


def test_the_cache_stays_small(tmp_path: Path):
    cache = tmp_path / "p.json"
    entry = {"works": True, "ratio": 0.5, "reason": "", "lasting": True}
    cache.write_text(json.dumps({f"machine {n}": entry for n in range(500)}))
    choose_precision("auto", "cpu", cache=cache, command=reports(0.5))
    assert len(json.loads(cache.read_text())) <= 32
