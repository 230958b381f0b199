"""Rendered photographs from the command line.

``python -m psnet.render labels OUT --count N --seed S``: photographs with labels, for training;
``python -m psnet.render plagiarized OUT --count N --seed S``: a plagiarism benchmark, for evaluation;
``python -m psnet.render attributes OUT --count N --seed S``: garments with attribute labels, for ASEN.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from psnet.config import Parser
from psnet.render.attributes import write_attributes
from psnet.render.labels import write_labels
from psnet.render.plagiarized import write_plagiarized_fashion


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 with one line on stderr for a mistake in the arguments."""
    parser = Parser(
        prog="python -m psnet.render",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    labels = commands.add_parser("labels", help="photographs, masks and labels.jsonl")
    plagiarized = commands.add_parser(
        "plagiarized", help="query/, gallery/, relations.csv, boxes.jsonl, catalogue.csv and truth.csv"
    )
    attributes = commands.add_parser(
        "attributes", help="meta.json and Rendered/ in the layout of ASEN's authors: garments, labels, splits"
    )
    for command, count in ((labels, 400), (plagiarized, 2000), (attributes, 5000)):
        command.add_argument("out", type=Path)
        command.add_argument("--count", type=int, default=count, help="photographs (attributes: to train on)")
        command.add_argument("--seed", type=int, default=0)
    for command in (plagiarized, attributes):
        command.add_argument("--workers", type=int, default=1, help="processes that share the work")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "labels":
            print(write_labels(arguments.out, arguments.count, arguments.seed))
        elif arguments.command == "attributes":
            print(write_attributes(arguments.out, arguments.count, arguments.seed, arguments.workers))
        else:
            print(
                write_plagiarized_fashion(
                    arguments.out, arguments.count, arguments.seed, workers=arguments.workers
                )
            )
    except (ValueError, OSError) as error:
        print(f"psnet.render: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
