"""Figures of finished runs, as Markdown: what every stage took, what lies on disk, how much was found where
the truth is known.

    python benchmarks/run_figures.py NAME=RUN[:TRUTH.csv] ... [--out benchmarks/RUNS.md]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.calibration import load_calibration
from pipeline.evaluate import read_truth, retrieval, verdicts
from pipeline.rundir import STAGES, RunDirectory
from pipeline.settings import load_settings
from pipeline.verify import likely_pairs
from psnet.evaluation.truth import ACCUSED, TruthPair

# Normalised scores from which photographs might be looked at again.
_FROM = (0.6, 0.45, 0.3)


def _size(path: Path) -> str:
    total = (
        sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        if path.is_dir()
        else path.stat().st_size
    )
    return f"{total / 1e6:.1f} MB"


def second_look(run: RunDirectory, truth: Sequence[TruthPair]) -> list[str]:
    """What looking at the photographs of likely pairs comes to, by where "likely" begins."""
    items = pq.read_table(run.items_path, columns=["item_id", "image_sha256"]).to_pylist()
    picture = {item["item_id"]: item["image_sha256"] for item in items}
    planted = {
        frozenset((picture[pair.original], picture[pair.copy]))
        for pair in truth
        if pair.relation in ACCUSED and {pair.original, pair.copy} <= picture.keys()
    }
    verified = pq.read_table(run.verified_path).to_pylist()
    laid = {_photographs(row) for row in verified if row["status"] == "registered"}
    lines = [
        "| looked at again from | pairs | copies among them | laid upon each other | copies of these |",
        "|---|---|---|---|---|",
    ]
    for least in _FROM:
        settings = load_settings(None, [f"verify.min_normalised_score={least}"])
        likely = likely_pairs(run, settings, load_calibration(settings)).to_pylist()
        looked_at = {_photographs(row) for row in likely}
        counts = [len(which & some) for some in (looked_at, looked_at & laid) for which in (some, planted)]
        lines.append(f"| {least:g} | {' | '.join(map(str, counts))} |")
    return [*lines, ""]


def _photographs(row: dict[str, object]) -> frozenset[object]:
    return frozenset((row["image_sha256"], row["other_image_sha256"]))


def run_section(name: str, folder: Path, truth: Path | None) -> str:
    """One run as a section: stages, sizes, and recall, mAP and precision against ``truth``."""
    record = json.loads((folder / "run.json").read_text())
    stages = record["stages"]
    extract = stages["extract"]
    lines = [
        f"## {name}",
        "",
        f"Model {record['model_tag']}, {extract.get('actors')} actors on {extract.get('device')}, "
        f"{extract.get('precision')}.",
        "",
        "| stage | in | out | failed | seconds | in a second |",
        "|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        if stage in stages:
            one = stages[stage]
            failed = ", ".join(f"{count} {reason}" for reason, count in one["failed"].items()) or "0"
            rate = one["in"] / max(one["seconds"], 1e-9)
            lines.append(
                f"| {stage} | {one['in']} | {one['out']} | {failed} | {one['seconds']:.1f} | {rate:.0f} |"
            )
    sizes = [
        f"`{part}` {_size(folder / part)}"
        for part in ("garments", "index", "pairs.parquet", "verified.parquet", "report")
    ]
    lines += ["", f"On disk: {', '.join(sizes)}.", ""]
    run, pairs = RunDirectory(folder), [] if truth is None else read_truth(truth)
    lines += second_look(run, pairs)
    if truth is not None:
        lines += ["| group | mAP | recall@1 | recall@10 | recall@20 |", "|---|---|---|---|---|"]
        for group, row in retrieval(run, pairs).items():
            lines.append(
                f"| {group} | "
                + " | ".join(f"{row[k]:.3f}" for k in ("mAP", "recall@1", "recall@10", "recall@20"))
                + " |"
            )
        found = verdicts(run, pairs)
        at = "".join(f", {value:.3f} among the first {n}" for n, value in found.precision_at.items())
        lines += [
            "",
            f"Suspects: {found.suspects}, of which {found.right} are two items of one design{at}; "
            f"{found.found} of {found.wanted} identical and plagiarised pairs found; relation right for "
            f"{found.relation_accuracy:.3f} of the pairs found, modified parts IoU {found.modified_iou:.3f}.",
            "",
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[:TRUTH.csv]")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    sections = [
        "# Figures of whole runs",
        "",
        "Written by `benchmarks/run_figures.py` from the runs' own records.",
        "",
    ]
    for argument in arguments.runs:
        name, _, rest = argument.partition("=")
        folder, _, truth = rest.partition(":")
        sections.append(run_section(name, Path(folder), Path(truth) if truth else None))
    text = "\n".join(sections).rstrip() + "\n"
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
