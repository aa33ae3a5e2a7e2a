"""One part of ``jaxmm check``, in a process of its own, which may use, break or hang the device as it likes."""

from __future__ import annotations

import importlib
import os

from jaxmm import command
from jaxmm.checks.row import written
from jaxmm.data.prepare.remote import default_cache
from jaxmm.runtime import startup

FLAGS: command.Flags = {
    "module": ("", "its rows(*arguments) are the part"),
    "arguments": ((), "strings, comma between them"),
}


def main(argv: list[str]) -> int:
    """Prints each row when it is there."""
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "")
    if os.environ.get("JAX_PLATFORMS") != "cpu":  # what an accelerator compiles takes longest
        startup.keep_compiled(default_cache())
    for row in importlib.import_module(args.module).rows(*args.arguments):
        print(written(row), flush=True)
    return 0


if __name__ == "__main__":
    command.run(main)
