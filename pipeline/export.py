"""The suspects of a run as one file for other programs, spreadsheets and e-mail."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import RunError, UserError, is_disk_full
from pipeline.report import inline_pictures, page_options, picture_sources, read_evidence, render_page
from pipeline.rundir import RunDirectory, write_atomically
from pipeline.schema import for_people, guard_formula, joined
from pipeline.settings import Settings
from psnet.config import ConfigError, load_config
from psnet.verdict import RELATIONS

HTML_SUSPECTS = 200
"""Most pairs in one HTML file: two inlined pictures of some 35 kB each make 14 MB, still fit for mail."""

XLSX_ROWS = 1_048_575
"""Rows of an Excel sheet below the heading."""

# Facts of the run that an exported list is worth little without.
_RUN_FACTS = ("catalogue", "against", "model_tag", "input_digest", "config_digest", "started")


@dataclass(frozen=True)
class Exported:
    """What was written: ``suspects`` rows to ``path``; ``left_out`` more did not fit the format."""

    path: Path
    suspects: int
    left_out: int


def export(
    run: RunDirectory,
    format: str,
    out: str | os.PathLike[str],
    *,
    relations: Sequence[str] = (),
    limit: int | None = None,
) -> Exported:
    """Write the suspects of ``run`` to one file, atomically.

    Args:
        format: csv, xlsx, json, parquet or html. csv and xlsx guard against cells that a spreadsheet would
            run as a formula; json and parquet hold every value verbatim. html is the report with its pictures
            inside, the best ``HTML_SUSPECTS`` pairs at most.
        out: the file; its folder is made when missing.
        relations: only these verdicts; empty: all.
        limit: only the best so many.

    Raises:
        UserError: unknown format or verdict, a run without suspects or with those of an earlier input (for
            html: without a report), a file that cannot be written.
        RunError: the disk is full.
    """
    write = _FORMATS.get(format)
    if write is None:
        raise UserError(
            f"unknown format {format!r}{_nearest(format, _FORMATS)}; known: {', '.join(_FORMATS)}"
        )
    for relation in relations:
        if relation not in RELATIONS:
            raise UserError(
                f"unknown verdict {relation!r}{_nearest(relation, RELATIONS)}; known: {', '.join(RELATIONS)}"
            )
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit}: at least one suspect has to be left")
    path = Path(out)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file, e.g. {path / f'suspects.{format}'}")
    if path.resolve() in {own.resolve() for own in _files_of(run)}:
        raise UserError(f"{path}: is a file of the run itself; name another --out")
    run.require_current("judge")
    suspects = pq.read_table(run.suspects_path)
    total = suspects.num_rows
    if relations:
        suspects = suspects.filter(pc.is_in(suspects["relation"], value_set=pa.array(list(relations))))
    suspects = suspects.slice(0, limit)
    chosen = ""
    if suspects.num_rows < total:
        asked = [f"--relation {relation}" for relation in relations]
        chosen = " ".join([*asked, *([] if limit is None else [f"--limit {limit}"])])
    data, written = write(_Source(run, suspects, chosen, total))
    try:
        write_atomically(path, data)
    except OSError as error:
        message = f"{path}: cannot be written ({error.strerror or error})"
        if is_disk_full(error):
            raise RunError(f"{message}; free some space and export again") from error
        raise UserError(f"{message}; name another --out") from None
    return Exported(path, written, suspects.num_rows - written)


@dataclass(frozen=True)
class _Source:
    """``suspects``: those to be written, chosen among the ``total`` of the run as ``chosen`` says."""

    run: RunDirectory
    suspects: pa.Table
    chosen: str
    total: int

    def settings(self) -> Settings:
        """Those that the run was made with."""
        try:
            return load_config(Settings, self.run.read().get("config", {}))
        except ConfigError as error:
            raise UserError(
                f"{self.run.record_path}: has settings of another psnet ({error}); scan again, or export csv"
            ) from None

    def facts(self) -> dict[str, Any]:
        record = self.run.read()
        return {name: record[name] for name in _RUN_FACTS if name in record} | {
            "versions": record.get("versions", {})
        }


def _cell(value: Any) -> Any:
    """A value of the table as a cell: lists '|'-joined (they are ours), text guarded, no false digits of
    float32."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, list):
        return joined(value)
    return guard_formula(value) if isinstance(value, str) else value


def _csv(source: _Source) -> tuple[bytes, int]:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    suspects = source.suspects.select(for_people(source.suspects))
    writer.writerow(suspects.column_names)
    for row in suspects.to_pylist():
        writer.writerow(["" if value is None else _cell(value) for value in row.values()])
    # The mark at the start is what makes Excel read UTF-8.
    return buffer.getvalue().encode("utf-8-sig"), source.suspects.num_rows


def _json(source: _Source) -> tuple[bytes, int]:
    document = {"run": source.facts(), "suspects": source.suspects.to_pylist()}
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    return (text + "\n").encode(), source.suspects.num_rows


def _parquet(source: _Source) -> tuple[bytes, int]:
    metadata = {**(source.suspects.schema.metadata or {}), b"psnet_run": json.dumps(source.facts()).encode()}
    buffer = io.BytesIO()
    pq.write_table(source.suspects.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue(), source.suspects.num_rows


def _xlsx(source: _Source) -> tuple[bytes, int]:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    from openpyxl.styles import Font

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("suspects")

    def cell(value: Any, bold: bool = False) -> Any:
        value = _cell(value)
        if isinstance(value, str):
            value = ILLEGAL_CHARACTERS_RE.sub("", value)[:32_767]  # the most that a cell holds
        made = WriteOnlyCell(sheet, value)
        if isinstance(value, str):
            made.data_type = "s"  # never a number, a date or a formula, whatever it looks like
            made.number_format = "@"
        if bold:
            made.font = Font(bold=True)
        return made

    names = for_people(source.suspects)
    rows = source.suspects.select(names).slice(0, XLSX_ROWS)
    sheet.freeze_panes = "A2"
    sheet.auto_filter.ref = f"A1:{openpyxl.utils.get_column_letter(len(names))}{rows.num_rows + 1}"
    for column, name in enumerate(names, 1):
        wide = 60 if name == "explanation" else 26 if name.endswith(("_id", "_title", "_regions")) else 14
        sheet.column_dimensions[openpyxl.utils.get_column_letter(column)].width = wide
    sheet.append([cell(name, bold=True) for name in names])
    for row in rows.to_pylist():
        sheet.append([cell(value) for value in row.values()])
    facts = source.facts()
    about = book.create_sheet("run")
    about.column_dimensions["A"].width, about.column_dimensions["B"].width = 20, 60
    versions = facts.pop("versions")
    for name, value in [*facts.items(), *((f"version of {name}", v) for name, v in versions.items())]:
        about.append([cell(name, bold=True), cell(str(value))])
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue(), rows.num_rows


def _html(source: _Source) -> tuple[bytes, int]:
    settings = source.settings()
    options = page_options(source.run, settings)
    options = replace(options, max_suspects=min(options.max_suspects, HTML_SUSPECTS))
    evidence = replace(
        read_evidence(source.run), suspects=source.suspects, chosen=source.chosen, total=source.total
    )
    shown = source.suspects.slice(0, options.max_suspects)
    pictures = inline_pictures(picture_sources(shown), settings.report.image_side)
    return render_page(evidence, pictures, options).encode(), shown.num_rows


_FORMATS: dict[str, Callable[[_Source], tuple[bytes, int]]] = {
    "csv": _csv,
    "xlsx": _xlsx,
    "json": _json,
    "parquet": _parquet,
    "html": _html,
}

FORMATS: tuple[str, ...] = tuple(_FORMATS)
"""What ``export`` can write."""


def _files_of(run: RunDirectory) -> tuple[Path, ...]:
    return (
        run.record_path,
        run.items_path,
        run.pairs_path,
        run.suspects_path,
        run.suspects_csv_path,
        run.report_path,
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f" (did you mean {near[0]}?)" if near else ""
