"""Shows what the model will see: the rows of some batches as one HTML page, or the plan of them as JSON lines.

    python -m jaxmm.inspect --config=configs/base.py --output=report.html --config.KEY=VALUE
    python -m jaxmm.inspect --config=configs/base.py --batches=0:100
    python -m jaxmm.inspect --workdir=runs/base --batches=56:57

Takes the same configs as train, or a run's own, and prepares what is not in the cache yet. No accelerator is looked
for.
"""

from __future__ import annotations

import collections
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm import atomic, command
from jaxmm.checkpoints.record import Record
from jaxmm.checkpoints.resume import Identity
from jaxmm.corpus import Corpus, make_assembler, make_plan, read_budgets
from jaxmm.data.packing.plan import Budgets, Origin, Plan
from jaxmm.data.prepare.statistics import column_rows
from jaxmm.errors import UserError
from jaxmm.json_text import parse_json
from jaxmm.recipe import DataRecipe, read_data, train_corpus
from jaxmm.report.content import DrawnRow, Report, Source
from jaxmm.report.page import render
from jaxmm.report.plan_lines import plan_line
from jaxmm.report.tally import Tally, over_budget
from jaxmm.report.view import Viewer
from jaxmm.workdir.spool import name_of

FLAGS: command.Flags = {
    "workdir": ("", "a run, in place of --config: its own config, data and plan"),
    "output": ("", "HTML page to write"),
    "batches": ("", "START:STOP, global batches from 0; without --output one JSON object each is printed"),
    "rows": (64, "rows drawn on the page; without --batches, it shows as many batches as hold them"),
}


def read_range(text: str) -> tuple[int, int]:
    """Reads ``START:STOP``: batches from START on, before STOP."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--batches '{text}' is no range: write START:STOP, with 0 <= START < STOP, such as 0:10")
    return int(match[1]), int(match[2])


def within(plan: Plan, batches: tuple[int, int], is_asked: bool, steps: int = 0) -> tuple[int, int]:
    """A range of batches as far as the plan goes; one that was asked for must be in it.

    Args:
      steps: of the run that the plan is of, which end it too; 0 is no run, or one that ends with its data.
    """
    count, told = batches[1], ""
    if not plan.mixture.is_endless:
        count = plan.batches(batches[1])
        told = f"the data: this plan has {count} batches"
    if 0 < steps < count:
        count = steps
        told = f"the run: it has {steps} steps, one batch each"
    if is_asked and batches[1] > count:
        raise UserError(f"--batches '{batches[0]}:{batches[1]}' goes past the end of {told}, 0:{count}")
    return batches[0], min(batches[1], count)


def _steps(config: Any, workdir: Path | None) -> int:
    """Those that end a run; 0 where it is the data that does, or where there is no run."""
    return config.steps if workdir and not config.epochs else 0


def left_out(corpus: Corpus) -> list[dict[str, int]]:
    """Of each source, the documents that preparing left out, by reason."""
    return [
        dict(collections.Counter(line["reason"] for line in atomic.read_lines(folder / "skipped.jsonl")).most_common())
        for folder in corpus.folders
    ]


def columns_of(folder: Path) -> tuple[tuple[str, int, str], ...]:
    """The columns of a prepared source's records, and whether they were read; older folders do not tell."""
    try:
        report = parse_json((folder / "report.json").read_text())
    except (OSError, ValueError):
        return ()
    return tuple((name, count, told) for _, name, count, told in column_rows([report])[1:])


class Planned(NamedTuple):
    """The data of a config, and the plan of its batches."""

    recipe: DataRecipe
    corpus: Corpus
    budgets: Budgets
    plan: Plan


def planned(config: Any, workdir: Path | None = None) -> Planned:
    """What a run of the config begins with, or, with its ``workdir``, what the run there goes on with."""
    record = Record.newest(workdir / "checkpoints") if workdir else None
    data = read_data(config, workdir if record else None)
    if record and (older := record.data.get("template")) in data.template.older:
        data = data._replace(template=data.template.as_of(older))
    corpus = train_corpus(config, data)
    budgets = read_budgets(config, corpus)
    if not record or not record.plan:
        return Planned(data, corpus, budgets, make_plan(config, corpus, budgets))
    begun = tuple(int(record.plan.begun_after.get(name, 0)) for name in corpus.names)
    identity = Identity.of(command.to_json(config), corpus, budgets, data.template.fingerprint).going_on(record)
    if changed := identity.check(record, workdir or Path(), True):
        print(f"warning: the data is not what {name_of(workdir or Path())} has seen ({'; '.join(changed)}): rows may "
              f"be others", file=sys.stderr)  # fmt: skip
    plan = make_plan(config, corpus, budgets, Origin(record.plan.batch, begun), identity.data["plan"])
    return Planned(data, corpus, budgets, plan)


def make_report(
    config: Any, title: str, batches: tuple[int, int], rows: int, is_asked: bool = True, workdir: Path | None = None
) -> Report:
    """Assembles the batches as a run would, and reads them back; the first ``rows`` of their rows are drawn.

    Args:
      is_asked: whether the user named these batches; others end where the plan does.
      workdir: of the run that the config is of, if it is one's.
    """
    data, corpus, budgets, plan = planned(config, workdir)
    batches = within(plan, batches, is_asked, _steps(config, workdir))
    image = data.image.only(corpus.media)
    assemble = make_assembler(config, image, corpus, budgets)
    viewer = Viewer(corpus.lengths, data.template, image)
    tally = Tally(corpus.lengths, budgets)
    drawn: list[DrawnRow] = []
    for k in range(*batches):
        loaded = assemble(plan.batch(k))
        tally.add(loaded)
        for b in range(min(len(loaded.rows), rows - len(drawn))):
            used = tuple(tally.used[len(tally.used) - len(loaded.rows) + b].tolist())
            drawn.append(DrawnRow(k, b, viewer.row(loaded, b), used))
    sources = [
        Source(
            source.name,
            len(source),
            share / sum(corpus.shares),
            over_budget(source, budgets),
            reasons,
            columns_of(folder),
            tuple(source.cut_lines()),
            source.preferences,
        )
        for source, share, reasons, folder in zip(
            corpus.lengths, corpus.shares, left_out(corpus), corpus.folders, strict=True
        )
    ]
    return Report(title, command.to_json(config), batches, image, config.data.long_documents, sources, tally, drawn)


def print_plan(config: Any, batches: tuple[int, int], workdir: Path | None = None) -> None:
    """Prints a JSON object a batch. No picture is read."""
    _, corpus, _, plan = planned(config, workdir)
    for k in range(*within(plan, batches, is_asked=True, steps=_steps(config, workdir))):
        print(json.dumps(plan_line(k, plan.batch(k), corpus.lengths)), flush=True)


def write_page(path: Path, report: Report) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(report), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}") from error


def main(argv: list[str]) -> int:
    is_run = any(word.partition("=")[0] == "--workdir" for word in argv)
    args = command.parse(argv, FLAGS, "workdir" if is_run else "file", about=__doc__ or "")
    workdir = Path(args.workdir) if is_run else None
    if not args.output and not args.batches:
        raise UserError("nothing to show: give --output=report.html for a page, or --batches=START:STOP for the plan")
    if args.rows < 1:
        raise UserError(f"--rows is {args.rows}: it must be at least 1")
    if args.output:
        batches = read_range(args.batches) if args.batches else (0, -(-args.rows // args.config.batch_size))
        data = args.config.data
        run = name_of(workdir) if workdir else args.config_name
        title = " · ".join(filter(None, (run, data.path or "the demo", data.mixture)))
        report = make_report(args.config, title, batches, args.rows, bool(args.batches), workdir)
        write_page(Path(args.output), report)
        print(f"{args.output}: batches {report.batches[0]} to {report.batches[1] - 1}; open it in a browser")
        return 0
    print_plan(args.config, read_range(args.batches), workdir)
    return 0


if __name__ == "__main__":
    command.run(main)
