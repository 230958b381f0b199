"""The command line: a few lines per command over the stages. Heavy modules are imported when one runs."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.errors import RunError, UserError, is_disk_full

if TYPE_CHECKING:
    from pipeline.rundir import RunDirectory
    from pipeline.settings import Settings

_MANUAL = """
Find copied garments in a product catalogue.

psnet compares garments region by region (collar, sleeves, chest, waist) and reports pairs of items where at
most two regions differ, with the evidence.

\b
THE USUAL WAY
  psnet scan catalogue.csv --out runs/tonight      screen a catalogue
  open runs/tonight/report/index.html              look at the suspects
  psnet export runs/tonight --format xlsx --out suspects.xlsx

\b
A CATALOGUE
  is a CSV or Parquet file with the columns item_id, image (a path relative to the file, s3:// or http(s)://)
  and seller_id; optional: brand, category, title, listed_at, rights_holder, licensed_from, url. A folder
  of images is a catalogue too.

\b
INTERRUPTED?
  Start the same command again: what is finished stays and is not computed twice.

\b
SETTINGS
  --config FILE reads a YAML file over the defaults, --set section.key=value changes one key and may be
  repeated. conf/default.yaml explains every key.
    psnet scan catalogue.csv --out runs/tonight --config conf/nightly.yaml --set judge.min_score=0.85

\b
EXIT CODES
  0  done
  1  the run failed; what is finished is kept
  2  a mistake in the input or the command
  130 (Ctrl-C), 143 (terminated)
"""

app = typer.Typer(
    name="psnet",
    help=_MANUAL,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML file with the keys to change.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. match.best_k=50; may be repeated."),
]
OutOption = Annotated[
    Path, typer.Option("--out", metavar="RUN", help="Run directory; one that exists is continued.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
CatalogueArgument = Annotated[
    str, typer.Argument(metavar="CATALOGUE", help="CSV or Parquet file, or a folder of images.")
]


class Format(enum.StrEnum):
    """Formats of `psnet export`."""

    CSV = "csv"
    XLSX = "xlsx"
    JSON = "json"
    PARQUET = "parquet"
    HTML = "html"


class CheckFormat(enum.StrEnum):
    """Formats of `psnet check`."""

    TEXT = "text"
    JSON = "json"


# --- the whole job


@app.command()
def scan(
    catalogue: CatalogueArgument, out: OutOption, config: ConfigOption = None, overrides: SetOption = None
) -> None:
    """Screen a whole catalogue: fetch, extract, index, match, verify, judge, report.

    \b
    psnet scan catalogue.csv --out runs/tonight
    psnet scan photographs/ --out runs/folder --set extract.actors=1
    """
    settings = _settings(config, overrides)
    from pipeline.scan import scan as run_scan

    _summarise(run_scan(catalogue, out, settings))


@app.command()
def sweep(
    originals: Annotated[
        str, typer.Argument(metavar="ORIGINALS", help="Catalogue of the brand's own designs.")
    ],
    against: Annotated[
        str,
        typer.Option(
            "--against", metavar="RUN_OR_CATALOGUE", help="Where to search; a scan's garments are reused."
        ),
    ],
    out: OutOption,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Search copies of one brand's originals in a catalogue, or in what an earlier scan has extracted.

    \b
    psnet sweep brand.csv --against runs/tonight --out runs/brand
    psnet sweep brand/ --against marketplace.parquet --out runs/brand --config conf/sweep.yaml
    """
    settings = _settings(config, overrides)
    from pipeline.scan import sweep as run_sweep

    _summarise(run_sweep(originals, against, out, settings))


@app.command()
def plan(
    catalogue: CatalogueArgument,
    cluster: Annotated[
        Path | None, typer.Option("--cluster", metavar="FILE", help="YAML file that describes the nodes.")
    ] = None,
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="YAML file of prices, for the cost.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long to measure.")] = 60,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Store the plan where the scan will be.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Say what a scan will take, before it runs: time, memory, disk and cost, measured for a minute.

    Stored with --out, the plan stands beside the actual times once `psnet scan --out` of the same RUN is
    done.

    \b
    psnet plan catalogue.csv --out runs/tonight
    psnet plan catalogue.csv --cluster conf/plan-cluster.yaml --prices conf/plan-prices.yaml
    """
    settings = _settings(config, overrides)
    from pipeline import plan as planning
    from pipeline.catalogue import read_catalogue
    from pipeline.rundir import RunDirectory

    nodes = planning.Cluster.here() if cluster is None else planning.read_cluster(cluster)
    price_list = None if prices is None else planning.read_prices(prices, nodes)
    run = None if out is None else RunDirectory(out)
    items = read_catalogue(catalogue, settings.crawl.s3_endpoint_url)
    made = planning.predict(
        planning.calibrate(items, settings, seconds), len(items), nodes, settings, price_list
    )
    rows = [
        [name, f"{stage.seconds:,.1f}", f"{stage.memory / 2**30:,.1f}", f"{stage.disk / 1e6:,.1f}"]
        for name, stage in made.stages.items()
    ]
    _print_table("", ["stage", "seconds", "GiB a node", "MB on disk"], rows)
    print(planning.in_words(made))
    if run is not None:
        run.update(plan=made.as_dict())


@app.command()
def check(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures of garments.")],
    against: Annotated[Path, typer.Option("--against", metavar="RUN", help="A run with an index.")],
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Most suspects of a garment.")] = 10,
    format: Annotated[
        CheckFormat, typer.Option("--format", help="For people or for programs.")
    ] = CheckFormat.TEXT,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Look single pictures up in a run: suspects, verdicts and reasons, in a second or so. Writes nothing.
    Exit code 2 where one of them cannot be read; the others are answered all the same.

    \b
    psnet check offer.jpg --against runs/tonight
    psnet check offer.jpg another.png --against runs/tonight --limit 3 --format json
    """
    run = _existing(against)
    settings = _settings(config, overrides, run.read().get("config"))
    from pipeline.check import check as run_check
    from pipeline.check import in_words

    answers = run_check(run, images, settings, limit)
    if format is CheckFormat.JSON:
        print(json.dumps([answer.as_dict() for answer in answers], indent=1, ensure_ascii=False))
    else:
        print("\n".join(in_words(answer) for answer in answers))
    if any(answer.error for answer in answers):  # a script shall not take "cannot be read" for "no suspect"
        raise typer.Exit(2)


@app.command()
def export(
    run: RunArgument,
    format: Annotated[Format, typer.Option("--format", help="Kind of file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")],
    relations: Annotated[
        list[str] | None,
        typer.Option("--relation", metavar="VERDICT", help="Only this verdict; may be repeated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Only the best N of them.")
    ] = None,
) -> None:
    """Write a run's suspects to one file, for a spreadsheet, a program or a colleague.

    \b
    psnet export runs/tonight --format xlsx --out suspects.xlsx
    psnet export runs/tonight --format html --out suspects.html
    psnet export runs/tonight --format csv --out worst.csv --relation plagiarised --limit 100
    """
    directory = _existing(run)
    from pipeline.export import export as run_export

    written = run_export(directory, format.value, out, relations=relations or (), limit=limit)
    print(written.path)
    if written.left_out:
        print(
            f"{written.left_out:,} more suspects are left out: {format.value} holds {written.suspects:,}",
            file=sys.stderr,
        )


@app.command()
def similar(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="item_id of the catalogue.")],
    attribute: Annotated[
        str, typer.Option("--attribute", metavar="NAME", help="E.g. collar; a wrong one lists them all.")
    ],
    run: Annotated[Path, typer.Option("--in", metavar="RUN", help="Run directory with attributes.")],
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Items to list.")] = 20,
    overrides: SetOption = None,
) -> None:
    """List the items whose garments are most alike in one attribute: the same collar, whatever the rest.

    The run needs attributes: psnet scan … --set extract.attributes=true

    \b
    psnet similar 0123 --attribute collar --in runs/tonight
    """
    directory = _existing(run)
    from pipeline.attributes import similar as find_similar

    settings = _settings(None, overrides, directory.read().get("config"))
    found = find_similar(directory, settings, item, attribute, limit)
    said = {True: "yes", False: "no", None: "-"}
    rows = [[one.item_id, f"{one.cosine:.3f}", said[one.agrees], one.title] for one in found]
    _print_table(f"{attribute} of {item}", ["item", "cosine", "agrees", "title"], rows)


# --- the stages alone


@app.command()
def crawl(
    catalogue: CatalogueArgument, out: OutOption, config: ConfigOption = None, overrides: SetOption = None
) -> None:
    """Stage 1: fetch the catalogue's images. Every item becomes a row of RUN/items/items.parquet.

    \b
    psnet crawl catalogue.csv --out runs/tonight --set crawl.per_host_limit=2
    """
    settings = _settings(config, overrides)
    from pipeline.catalogue import catalogue_digest, read_catalogue
    from pipeline.crawl import crawl as run_crawl
    from pipeline.rundir import begin_run

    table = read_catalogue(catalogue, settings.crawl.s3_endpoint_url)
    run = begin_run(out, settings, catalogue, catalogue_digest(table))
    run_crawl(run, table, settings)
    _summarise(run)


@app.command()
def extract(run: RunArgument, config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Stage 2: find the garments and their region features. Writes RUN/garments/.

    This stage and the following ones keep the settings that the run was started with, but for those given.

    \b
    psnet extract runs/tonight --set extract.device=cpu
    """
    with _continued(run, config, overrides) as (directory, settings):
        from pipeline.extract import extract as run_extract

        run_extract(directory, settings)
        _summarise(directory)


@app.command()
def index(
    run: RunArgument,
    add: Annotated[
        list[Path] | None,
        typer.Option("--add", metavar="RUN2", help="Take in the garments of another run; may be repeated."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="SHARD", help="Leave a shard out from now on; may be repeated."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Name the shards.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its hash.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Stage 3: build the FAISS shards over the garments. Writes RUN/index/.

    What is there and fits stays: added garments fill new shards, a dropped shard leaves the others alone. To
    take dropped shards back, add the run that they came from.

    \b
    psnet index runs/tonight --set index.factory=IVF1024,SQfp16
    psnet index runs/tonight --add runs/new-sellers
    psnet index runs/tonight --list
    psnet index runs/tonight --drop shard-1f0c4e5a9b2d
    """
    if show or verify:
        from pipeline.index_manifest import check_index

        if add or drop or overrides or config:
            raise UserError(
                "--list and --verify change nothing; give --add, --drop and --set in a call without"
            )
        manifest = check_index(_existing(run), thorough=verify)
        rows = [
            [
                one.name,
                f"{one.garments:,}",
                f"{sum(file.size for file in one.files.values()) / 1e6:,.1f}",
                one.run,
            ]
            for one in manifest.shards
        ]
        _print_table(f"{manifest.factory} of {manifest.model_tag}", ["shard", "garments", "MB", "from"], rows)
        return
    with _continued(run, config, overrides) as (directory, settings):
        from pipeline.index import build_index

        build_index(directory, settings, add=add or (), drop=drop or ())
        _summarise(directory)


@app.command()
def match(run: RunArgument, config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Stages 4 to 6: compare all pairs, look again at the likely ones, judge. Writes RUN/suspects.*.

    \b
    psnet match runs/tonight --set judge.dismissed=dismissed.csv
    """
    with _continued(run, config, overrides) as (directory, settings):
        from pipeline.judge import judge
        from pipeline.match import match as run_match
        from pipeline.verify import verify

        run_match(directory, settings)
        verify(directory, settings)
        judge(directory, settings)
        _summarise(directory)


@app.command()
def report(run: RunArgument, config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Stage 7: write the page of suspects, RUN/report/index.html.

    \b
    psnet report runs/tonight --set report.max_suspects=200
    """
    with _continued(run, config, overrides) as (directory, settings):
        from pipeline.report import report as run_report

        run_report(directory, settings)
        _summarise(directory)


# --- trying out, measuring, training


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the catalogue and the run.")],
    garments: Annotated[
        int, typer.Option(min=15, help="Photographs to draw, planted copies included.")
    ] = 300,
    seed: Annotated[int, typer.Option(help="Another seed draws another catalogue.")] = 0,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Draw a catalogue with planted copies, screen it, and count how many of the copies were found.

    \b
    psnet demo --out runs/demo
    """
    settings = _settings(config or _shipped("demo.yaml"), overrides)
    from pipeline.evaluate import read_truth, verdicts
    from pipeline.scan import scan as run_scan

    catalogue = _demo_catalogue(out, garments, seed)
    run = run_scan(catalogue, out / "run", settings)
    _summarise(run)
    found = verdicts(run, read_truth(catalogue.with_name("truth.csv")))
    share = found.found / max(found.wanted, 1)
    print(f"Planted copies found: {found.found} of {found.wanted} ({share:.0%})")
    print(f"Suspects that are copies indeed: {found.right} of {found.suspects}")


eval_app = typer.Typer(
    help="""Measure the models on benchmarks whose truth is known, or a finished run.

    \b
    psnet eval retrieval --config conf/evaluate.yaml --set benchmarks.dev=bench-dev
    psnet eval run runs/bench bench/truth.csv
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(eval_app, name="eval")


@eval_app.command(name="run")
def evaluate(
    run: RunArgument,
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="CSV file: original, copy, relation, group, modified.")
    ],
) -> None:
    """Score a run against the truth: recall@k and mAP of the pairs, precision and recall of the suspects.

    \b
    psnet eval run runs/bench bench/truth.csv
    """
    directory = _existing(run)
    from pipeline.evaluate import read_truth, retrieval, verdicts

    pairs = read_truth(truth)
    figures = retrieval(directory, pairs)
    names = list(next(iter(figures.values()), {}))
    rows = [[group, *(f"{row[name]:.3f}" for name in names)] for group, row in figures.items()]
    _print_table("", ["group", *names], rows)
    scored = verdicts(directory, pairs)
    print(f"suspects                 {scored.suspects}")
    print(f"pair precision           {scored.right / max(scored.suspects, 1):.3f}")
    for n, precision in scored.precision_at.items():
        print(f"{f'precision@{n}':<25}{precision:.3f}")
    print(f"pair recall              {scored.found / max(scored.wanted, 1):.3f}")
    print(f"relation accuracy        {scored.relation_accuracy:.3f}")
    print(f"modified-region IoU      {scored.modified_iou:.3f}")


# Hand everything on to a parser of their own.
_HANDED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _measuring(part: str, what: str) -> None:
    """Adds `psnet eval PART`, which is python -m psnet.evaluation PART."""

    def command(context: typer.Context) -> None:
        from psnet.evaluation.__main__ import main as evaluation_main

        raise typer.Exit(evaluation_main([part, *context.args]))

    eval_app.command(name=part, help=what, context_settings=_HANDED_ON)(command)


for _part, _what in (
    ("detection", "AP and recall of the garments' boxes."),
    ("landmarks", "Errors of landmarks and region boxes."),
    ("retrieval", "Recall@k and mAP, by group and by kind of copy."),
    ("photographs", "What a flip, a crop, other light or JPEG costs."),
    ("plagiarism", "Verdicts, confusion by number of modified regions, leakage."),
    ("ablation", "All variants and baselines side by side."),
    ("pictures", "Landmarks, attention, region weights, curves and retrieval rows."),
    ("asen", "mAP per attribute against baselines and ablations, attention, pictures."),
):
    _measuring(_part, _what)


@app.command(context_settings=_HANDED_ON)
def train(context: typer.Context) -> None:
    """Train the models; `psnet train --help` lists the parts. The same as python -m psnet.train."""
    from psnet.train.__main__ import main as train_main

    raise typer.Exit(train_main(context.args))


@app.command()
def version() -> None:
    """Print the version."""
    import psnet

    print(f"psnet {psnet.__version__}")


# --- what the commands share


def _settings(
    config: Path | None, overrides: list[str] | None, base: dict[str, Any] | None = None
) -> Settings:
    from pipeline.settings import load_settings

    settings = load_settings(config, overrides, base)
    logging.basicConfig(level=settings.log_level.upper(), format="psnet: %(levelname)s: %(message)s")
    return settings


def _existing(path: Path) -> RunDirectory:
    from pipeline.rundir import RunDirectory

    return RunDirectory.existing(path)


@contextlib.contextmanager
def _continued(
    path: Path, config: Path | None, overrides: list[str] | None
) -> Iterator[tuple[RunDirectory, Settings]]:
    """A run and its own settings with the changes of this command, which become the run's.

    A change that turns out to be a mistake is taken back, or every later command would stumble over it.
    """
    from psnet.config import as_dict, digest

    run = _existing(path)
    before = run.read()
    settings = _settings(config, overrides, before.get("config"))
    run.update(config=as_dict(settings), config_digest=digest(settings))
    try:
        yield run, settings
    except UserError:
        run.update(config=before.get("config"), config_digest=before.get("config_digest"))
        raise


def _shipped(name: str) -> Path:
    from importlib.resources import files

    return Path(str(files("conf") / name))


def _demo_catalogue(out: Path, garments: int, seed: int) -> Path:
    # The name says what is in it, so that a second demo draws nothing again and other numbers draw anew.
    folder = out / f"catalogue-{garments}-{seed}"
    catalogue = folder / "catalogue.csv"
    if not catalogue.exists():
        from psnet.render.catalogue import write_demo_catalogue

        print(f"drawing {garments} photographs into {folder}", file=sys.stderr)
        catalogue = write_demo_catalogue(
            folder, garments=garments, seed=seed, workers=len(os.sched_getaffinity(0))
        )
    return catalogue


def _summarise(run: RunDirectory) -> None:
    """A table of the stages, where the failures are, and where the results lie."""
    record = run.read()
    rows = []
    failures = []
    for name, stage in record.get("stages", {}).items():
        failed = stage.get("failed", {})
        if name in run.finished_before:
            seconds = "unchanged"
        else:
            seconds = f"{stage.get('seconds', 0):,.1f}" if stage.get("done") else "not finished"
        counts = ("" if stage.get(key) is None else f"{stage[key]:,}" for key in ("in", "out"))
        rows.append([name, *counts, f"{sum(failed.values()):,}", seconds])
        if "plan" in record:
            planned = stage.get("planned_seconds")
            rows[-1].append("" if planned is None else f"{planned:,.1f}")
        failures += [f"{name}: {count:,} {reason}" for reason, count in failed.items()]
    planned_too = ["planned"] if "plan" in record else []
    _print_table(str(run.path), ["stage", "in", "out", "failed", "seconds", *planned_too], rows)
    if failures:
        print(f"Failed: {', '.join(failures)}")
    for name in ("index", "match"):
        missed = record.get("stages", {}).get(name, {}).get("missed")
        if missed:
            from pipeline.missed import in_words

            print(in_words(missed, name))
    if record.get("stages", {}).get("judge", {}).get("done"):
        print(f"Suspects: {run.suspects_csv_path}")
    if record.get("stages", {}).get("report", {}).get("done"):
        print(f"Report: {run.report_path}")


_ANY_WIDTH = 10_000


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Titles and identifiers are what somebody wrote, not markup, and stay whole; a pipe has no width.
    table = Table(title=Text(title) if title else None, title_justify="left")
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False, width=None if sys.stdout.isatty() else _ANY_WIDTH).print(table)


# --- errors and signals


class _Interrupted(BaseException):
    """SIGINT or SIGTERM. No KeyboardInterrupt, which the argument parser would turn into something else."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


# The parser's own errors all derive from the base of the one that typer makes public.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(arguments: list[str] | None = None) -> NoReturn:
    """The program. Ends the process with the exit codes of the manual."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts background jobs with SIGINT ignored, and means it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        code = run_command(sys.argv[1:] if arguments is None else arguments)
    except _Interrupted as error:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _complain(
            f"stopped; what is finished is kept, and the same command goes on from there: {_command_line()}"
        )
        _leave(error.exit_code)
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit code; a failure is one line on stderr."""
    try:
        code = app(arguments, prog_name="psnet", standalone_mode=False)
    except _UsageError as error:
        _complain(_usage_message(error))
        return 2
    except typer.Abort:
        return 1
    except UserError as error:
        _complain(str(error))
        return 2
    except RunError as error:
        _complain(_disk_full(error) or str(error))
        return 1
    except BrokenPipeError:
        # The reader of stdout (`| head`) has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = _disk_full(error) or _outside_failure(error)
        if message is None:
            raise
        _complain(message)
        return 1
    return code if isinstance(code, int) else 0


def _interrupt(number: int, frame: object) -> NoReturn:
    raise _Interrupted(number)


def _leave(code: int) -> NoReturn:
    """End without waiting for threads that are still fetching; Ray's processes are told."""
    if "ray" in sys.modules:
        with contextlib.suppress(Exception):
            sys.modules["ray"].shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _usage_message(error: Exception) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    message = message.replace("Value error, ", "")  # the type checker's word, not the user's
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "psnet"
    return f"{message.rstrip('.')}; see `{command} --help`"


def _disk_full(error: BaseException) -> str | None:
    cause: BaseException | None = error
    while cause is not None:
        if is_disk_full(cause):
            where = f" ({cause.filename})" if cause.filename else ""
            return (
                f"the disk is full{where}; free some space and start the same command again, what is "
                f"finished is kept: {_command_line()}"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _outside_failure(error: Exception) -> str | None:
    """One line for failures of the machine or the cluster; None for anything else, which is a bug."""
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        return None
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, MemoryError):
        return "not enough memory; lower extract.batch_images, extract.actors or match.block_size"
    if type(error).__module__.split(".")[0] == "ray":
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return f"a worker failed: {last}; --set log_level=debug shows more"
    return None


def _complain(message: str) -> None:
    print(f"psnet: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _command_line() -> str:
    return shlex.join(["psnet", *sys.argv[1:]])


if __name__ == "__main__":
    main()
