from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import export as module
from pipeline.errors import UserError
from pipeline.export import FORMATS, export, guard_formula
from pipeline.rundir import RunDirectory
from pipeline.schema import SUSPECT_SCHEMA, for_people
from psnet.warp import NODES
from tests.pipeline.judged_run import COSINES, make_run

FOR_PEOPLE = for_people(SUSPECT_SCHEMA.empty_table())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("export"))


def test_csv_holds_every_column_and_reads_back(run: RunDirectory, tmp_path: Path) -> None:
    written = export(run, "csv", tmp_path / "new" / "suspects.csv")
    assert (written.suspects, written.left_out) == (len(COSINES), 0)
    rows = list(csv.DictReader(written.path.open(encoding="utf-8-sig", newline="")))
    assert list(rows[0]) == FOR_PEOPLE
    assert rows[0]["original_item_id"] == "000"
    assert rows[2]["modified_regions"] == "collar|waist"
    assert rows[1]["cos_left_sleeve"] == ""
    assert float(rows[0]["score"]) == pytest.approx(0.94)


@pytest.mark.parametrize("format", ["csv", "xlsx", "json", "parquet"])
def test_a_pair_that_was_laid_upon_each_other_is_exported(tmp_path: Path, format: str) -> None:
    run = make_run(tmp_path / "run")
    suspects = pq.read_table(run.suspects_path).to_pylist()
    matrix = [1.0, 0.25, 9.0, 0.0, 1.0, -6.0, 1.25e-7, 0.0, 1.0]
    suspects[0] |= {"registered_points": 31, "homography": matrix, "laid": [1.5] * (4 * NODES * NODES)}
    pq.write_table(pa.Table.from_pylist(suspects, schema=SUSPECT_SCHEMA), run.suspects_path)
    path = export(run, format, tmp_path / f"s.{format}").path
    if format == "csv":
        row = next(csv.DictReader(path.open(encoding="utf-8-sig", newline="")))
        assert [float(number) for number in row["homography"].split("|")] == matrix
    if format == "xlsx":
        sheet = openpyxl.load_workbook(path)["suspects"]
        assert [
            float(n) for n in sheet.cell(2, 1 + FOR_PEOPLE.index("homography")).value.split("|")
        ] == matrix
    if format == "json":
        assert len(json.loads(path.read_text())["suspects"][0]["laid"]) == 4 * NODES * NODES


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_are_made_text(text: str) -> None:
    assert guard_formula(text) == "'" + text


def test_numbers_of_a_list_are_no_formula(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    suspects = pq.read_table(run.suspects_path).to_pylist()
    suspects[0]["homography"] = [-1.0, 0.0, 5.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    pq.write_table(pa.Table.from_pylist(suspects, schema=SUSPECT_SCHEMA), run.suspects_path)
    path = export(run, "csv", tmp_path / "s.csv").path
    row = next(csv.DictReader(path.open(encoding="utf-8-sig", newline="")))
    assert row["homography"].startswith("-1|0|5|")


def test_suspects_of_an_earlier_input_are_not_exported_as_tonights(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.begin(input_digest="another", config_digest="c0ffee")
    with pytest.raises(UserError, match="of an earlier input"):
        export(run, "csv", tmp_path / "s.csv")


@pytest.mark.parametrize("text", ["", "a=1", "007", "s-1"])
def test_other_text_is_left_alone(text: str) -> None:
    assert guard_formula(text) == text


def test_xlsx_keeps_identifiers_as_text(run: RunDirectory, tmp_path: Path) -> None:
    path = export(run, "xlsx", tmp_path / "s.xlsx").path
    book = openpyxl.load_workbook(path)
    sheet = book["suspects"]
    head = {cell.value: cell.column for cell in sheet[1]}
    assert list(head) == FOR_PEOPLE
    identifier = sheet.cell(2, head["original_item_id"])
    assert (identifier.value, identifier.data_type, identifier.number_format) == ("000", "s", "@")
    assert sheet.cell(2, head["score"]).data_type == "n"
    assert sheet.cell(3, head["cos_left_sleeve"]).value is None
    assert not any(cell.data_type == "f" for row in sheet.iter_rows() for cell in row)
    assert sheet.freeze_panes == "A2"
    assert ("model_tag", "psnet-test") in {(row[0].value, row[1].value) for row in book["run"].iter_rows()}


def test_json_and_parquet_are_verbatim_and_say_which_model(run: RunDirectory, tmp_path: Path) -> None:
    document = json.loads(export(run, "json", tmp_path / "s.json").path.read_text())
    assert document["run"]["model_tag"] == "psnet-test"
    table = pq.read_table(export(run, "parquet", tmp_path / "s.parquet").path)
    assert table.schema.equals(SUSPECT_SCHEMA)
    assert json.loads(table.schema.metadata[b"psnet_run"])["config_digest"] == "c0ffee"
    assert table.to_pylist() == document["suspects"] == pq.read_table(run.suspects_path).to_pylist()


def test_html_is_one_file_with_its_pictures(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HTML_SUSPECTS", 2)
    written = export(run, "html", tmp_path / "s.html")
    assert (written.suspects, written.left_out) == (2, 1)
    page = written.path.read_text()
    match = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    data = json.loads(match[1])
    assert [picture["src"][:23] for picture in data["pictures"]] == ["data:image/jpeg;base64,"] * 4
    assert "best 2 of 3" in data["notice"]
    assert "<title>Suspects of a test</title>" in page


def test_the_list_can_be_cut(run: RunDirectory, tmp_path: Path) -> None:
    identical = export(run, "json", tmp_path / "i.json", relations=["identical"])
    page = export(run, "html", tmp_path / "i.html", relations=["identical"]).path.read_text()
    assert "shows the 1 of 3 suspected pairs chosen by --relation identical" in page
    assert '"Suspected pairs","value":"3","note":"1 chosen"' in page
    page = export(run, "html", tmp_path / "n.html", relations=["undecidable"]).path.read_text()
    assert "None of the 3 suspected pairs was chosen by --relation undecidable." in page
    assert [s["rank"] for s in json.loads(identical.path.read_text())["suspects"]] == [2]
    assert export(run, "csv", tmp_path / "l.csv", limit=1).suspects == 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_without_suspects_exports_an_empty_list(tmp_path: Path, format: str) -> None:
    run = make_run(tmp_path, [])
    written = export(run, format, tmp_path / f"empty.{format}")
    assert written.suspects == 0
    assert written.path.stat().st_size > 0


def test_mistakes_are_named(run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"'xslx' \(did you mean xlsx\?\); known: csv, xlsx, json, parquet, html"
    ):
        export(run, "xslx", out)
    with pytest.raises(UserError, match="did you mean plagiarised"):
        export(run, "csv", out, relations=["plagiarized"])
    with pytest.raises(UserError, match="limit 0"):
        export(run, "csv", out, limit=0)
    with pytest.raises(UserError, match="is a folder"):
        export(run, "csv", tmp_path)
    with pytest.raises(UserError, match="a file of the run itself"):
        export(run, "csv", run.path / "report" / ".." / "suspects.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(run, "csv", tmp_path / "file" / "suspects.csv")
    with pytest.raises(UserError, match="stage judge is not done"):
        export(RunDirectory(tmp_path / "none"), "csv", out)
    assert not out.exists()
