"""The figures of `psnet eval run` against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.evaluate import read_truth, retrieval, verdicts
from pipeline.rundir import RunDirectory

TRUTH = """original,copy,relation,group,modified,kinds,mirrored
a,a1,identical,dress,,,0
a,a2,plagiarised,dress,left_sleeve|chest,,0
a,a3,plagiarised,dress,collar,,0
b,b1,plagiarised,tops,waist,,0
c,c1,derived,tops,collar|chest|waist,,0
"""


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "truth.csv"
    path.write_text(TRUTH)
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    # a: an identical copy (neither right nor wrong), a hit, a miss, a hit, the hit again, itself. b: second.
    partners = {"a": ["a1", "a2", "x", "a3", "a2", "a"], "b": ["a", "b1"], "x": ["a"]}
    pairs = [
        {"query_item_id": query, "match_item_id": match, "rank": rank}
        for query, matches in partners.items()
        for rank, match in enumerate(matches, 1)
    ]
    suspects = [
        ("a", "a2", "plagiarised", ["right_sleeve", "waist"]),
        ("a1", "a", "plagiarised", []),
        ("a2", "a3", "plagiarised", []),
        ("c", "c1", "similar", []),
        ("x", "b", "identical", []),
    ]
    with run.stage("match", "m"):
        # Not in order: rank decides.
        pq.write_table(pa.Table.from_pylist(pairs[::-1]), run.pairs_path)
    with run.stage("judge", "j"):
        rows = [
            {
                "rank": rank,
                "original_item_id": original,
                "suspect_item_id": suspect,
                "relation": relation,
                "modified_regions": modified,
            }
            for rank, (original, suspect, relation, modified) in enumerate(suspects, 1)
        ]
        pq.write_table(pa.Table.from_pylist(rows[::-1]), run.suspects_path)
    return run


def test_retrieval_as_in_the_paper(run: RunDirectory, truth: Path):
    figures = retrieval(run, read_truth(truth))
    assert list(figures) == ["dress", "tops", "overall"]
    # Of a, hits are: a2 right, x wrong, a3 right.
    assert figures["dress"] == pytest.approx(
        {"recall@1": 1.0, "recall@10": 1.0, "recall@20": 1.0, "mAP": (1 + 2 / 3) / 2}
    )
    assert figures["tops"] == pytest.approx({"recall@1": 0.0, "recall@10": 1.0, "recall@20": 1.0, "mAP": 0.5})
    assert figures["overall"]["recall@1"] == pytest.approx(0.5)


def test_verdicts(run: RunDirectory, truth: Path):
    scored = verdicts(run, read_truth(truth))
    assert (scored.suspects, scored.right, scored.wanted, scored.found) == (5, 4, 4, 2)
    # a-a2 rightly plagiarised, a-a1 wrongly, c-c1 rightly not accused.
    assert scored.relation_accuracy == pytest.approx(2 / 3)
    # sleeves and waist named, sleeves and chest true.
    assert scored.modified_iou == pytest.approx(1 / 3)
    assert scored.precision_at == {}


def test_a_run_without_suspects_and_a_file_without_columns(tmp_path: Path, truth: Path):
    with pytest.raises(UserError, match="psnet match"):
        verdicts(RunDirectory(tmp_path / "none"), read_truth(truth))
    truth.write_text("original,copy\n")
    with pytest.raises(UserError, match="no column relation"):
        read_truth(truth)
    truth.write_text("original,copy,relation,group,modified\na,b,stolen,dress,\n")
    with pytest.raises(UserError, match=r"truth\.csv, line 2: unknown relation 'stolen'"):
        read_truth(truth)
    with pytest.raises(UserError, match="cannot be read"):
        read_truth(tmp_path / "other.csv")
