"""Writes one HTML page of a run, or of several side by side, from what lies in their folders.

    python -m jaxmm.report --workdir=runs/base
    python -m jaxmm.report --workdir=runs/base --workdir=runs/other --output=both.html

A run writes its page by itself, at each evaluation and at its end. No accelerator is looked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jaxmm import command
from jaxmm.errors import UserError
from jaxmm.report.run_data import read_run
from jaxmm.report.run_page import NAME, write_page
from jaxmm.workdir.spool import publish

FLAGS: command.Flags = {
    "workdir": ((), "folder of a run; given several times, or with commas between them, for runs side by side"),
    "output": ("", f"HTML page to write; default: {NAME} in the folder of the run, or here for several"),
}


def main(argv: list[str]) -> int:
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "", repeated=("workdir",))
    folders: dict[Path, Path] = {}  # by where it is: a run may have two names
    for folder in map(Path, args.workdir):
        if folders.setdefault(folder.resolve(), folder) is not folder:
            print(f"--workdir {folder} is given twice: the page shows it once", file=sys.stderr)
    if not folders:
        raise UserError("--workdir is missing: give the folder of a run, such as --workdir=runs/base")
    runs = [read_run(folder) for folder in folders.values()]
    path = Path(args.output) if args.output else (runs[0].folder if len(runs) == 1 else Path()) / NAME
    if not path.parent.exists():
        raise UserError(f"--output={path}: there is no folder {path.absolute().parent}")
    try:
        write_page(path, runs)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}") from error
    told = ", ".join(f"{run.name} at step {run.step}" if run.step else f"{run.name}, no step yet" for run in runs)
    print(f"{path}: {told}; open it in a browser")
    publish(path)  # last: a store that cannot be written to must not cost the page
    return 0


if __name__ == "__main__":
    command.run(main)
