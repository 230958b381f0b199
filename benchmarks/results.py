"""All tables and pictures of `psnet eval`, as Markdown: parts that were measured with these settings, models
and data are read, the others are measured. Pictures are drawn where the settings name folders for them, which
for this page are pictures/BENCHMARK beside it. With --parts the other sections stay as the page has them.

    python benchmarks/results.py --config conf/evaluate.yaml [--set KEY=VALUE ...] [--out RESULTS.md]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from psnet.config import add_options, load_options
from psnet.evaluation.__main__ import measure
from psnet.evaluation.session import Session
from psnet.evaluation.settings import EvaluationSettings
from psnet.evaluation.tables import Table, read_tables

HEADINGS = {
    "detection": "Detection",
    "landmarks": "Landmarks and regions",
    "ablation": "Retrieval: all methods",
    "retrieval": "Retrieval: by group and kind of copy",
    "photographs": "Changes of the photograph",
    "plagiarism": "Verdicts and leakage",
}
# Files of `psnet eval pictures`.
CAPTIONS = {
    "landmarks": "Landmarks and regions: dots are visible landmarks, rings hidden ones.",
    "attention": "Where the attention of the branch with ROI pooling looks.",
    "region_weights": "The region weights λ per group, each group's summing to 1; the line is λ = 1.",
    "precision_recall": "Precision over recall of pairs, over all thresholds on the score, per group.",
    "retrieval": "Originals and their best ten partners: green plagiarised copies, grey other items of the "
    "same design, red other designs.",
}

INTRODUCTION = """# Results

Written by `benchmarks/results.py` from what `psnet eval` measured. Every figure stands on the data that its
table names, with its 95 % interval in brackets. Columns that begin with "paper" are those of Lang et al.
(CVPR 2020), measured on data that was never published or that allows no commercial use: they stand beside
ours for orientation and are not to be compared digit by digit.

The attribute-specific network has tables of its own: [ASEN.md](ASEN.md).
"""


def tables_of(part: str, settings: EvaluationSettings, fingerprint: str) -> list[Table]:
    """One part's tables, measured when they are not there or were measured on something else."""
    path = Path(settings.out) / f"{part}.json"
    if path.is_file():
        tables, measured_on = read_tables(path)
        if measured_on == fingerprint:
            return tables
    print(f"measuring {part}", file=sys.stderr, flush=True)
    return measure(part, settings)


def sections_of(page: str) -> dict[str, str]:
    """Heading of the second level to what stands below it, up to the next one."""
    found = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)[1:]
    return {heading: text.strip("\n") for heading, text in zip(found[::2], found[1::2], strict=True)}


def document(settings: EvaluationSettings, parts: Sequence[str], pictures: Path, page: str = "") -> str:
    """The whole page; ``pictures``: the folder beside it, with a folder per benchmark; ``page``: as it was,
    whose sections stay where they are none of ``parts``."""
    sections, former = [INTRODUCTION], sections_of(page)
    fingerprint = Session(settings).fingerprint
    for part, heading in HEADINGS.items():
        if part not in parts and heading not in former:
            continue
        sections.append(f"## {heading}\n")
        if part not in parts:
            sections.append(former[heading] + "\n")
            continue
        sections += [table.markdown() + "\n" for table in tables_of(part, settings, fingerprint)]
    if settings.pictures:
        tables_of("pictures", settings, fingerprint)
    folders = [pictures / name for name in settings.benchmarks]
    drawn = [(f, name) for f in folders for name in CAPTIONS if (f / f"{name}.jpg").is_file()]
    if drawn:
        sections.append(
            "## Pictures\n\nDrawn by `psnet eval pictures`. Of real photographs outlines are shown: the "
            "repository holds no photograph.\n"
        )
    for folder, name in drawn:
        caption = f"{CAPTIONS[name]} Data: {folder.name}."
        sections.append(f"![{caption}]({pictures.name}/{folder.name}/{name}.jpg)\n\n{caption}\n")
    return "\n".join(sections)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, "psnet.evaluation.settings.EvaluationSettings")
    parser.add_argument("--parts", nargs="+", choices=tuple(HEADINGS), default=tuple(HEADINGS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    arguments = parser.parse_args(argv)
    try:
        settings = load_options(EvaluationSettings, arguments)
        page = arguments.out.read_text(encoding="utf-8") if arguments.out.is_file() else ""
        text = document(settings, arguments.parts, arguments.out.with_name("pictures"), page)
    except (ValueError, FileNotFoundError) as error:
        print(f"results.py: {error}", file=sys.stderr)
        return 2
    arguments.out.write_text(text, encoding="utf-8")
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
