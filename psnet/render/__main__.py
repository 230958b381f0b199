"""``python -m psnet.render labels OUT --count N --seed S``: rendered photographs with labels for training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from psnet.render.labels import write_labels


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m psnet.render", description=__doc__)
    commands = parser.add_subparsers(required=True)
    labels = commands.add_parser("labels", help="photographs, masks and labels.jsonl")
    labels.add_argument("out", type=Path)
    labels.add_argument("--count", type=int, default=400)
    labels.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    print(write_labels(arguments.out, arguments.count, arguments.seed))


if __name__ == "__main__":
    main()
