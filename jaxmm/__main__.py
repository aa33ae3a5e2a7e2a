"""The ``jaxmm`` command: ``jaxmm train --config=base`` is ``python -m jaxmm.train --config=base``, and so on.

It imports nothing but the command that is asked for, so that the first lines of each run first there as well.
"""

from __future__ import annotations

import runpy
import sys

import jaxmm
from jaxmm import closed_pipe
from jaxmm.errors import error_line, nearest

COMMANDS = {
    "train": "train a model, or go on with a run",
    "evaluate": "loss and exact answers of a run on held-out data",
    "generate": "answers of a run to a prompt with images, or to a file of them",
    "chat": "talk with a run in the browser, and see where it looked",
    "export": "write a run as a Hugging Face folder",
    "prepare": "tokenize and store data once, for any number of runs",
    "inspect": "show what the model will see: a page, or the plan of each batch",
    "encode_features": "encode the pictures and clips of a corpus once, by a run's towers",
    "reference": "ask the model that a run begins from about its data's preferences, once",
    "report": "one page of a run, or of several side by side: curves, attention, samples, time",
    "families": "the models that can be trained, or what a folder holds",
    "estimate": "memory, FLOPs and communication of a step, without the hardware",
    "train_on_ray": "train on a Ray cluster, which starts the job again where a machine dies",
    "check": "tell whether this machine's accelerator works, and how fast it is",
}


def usage() -> str:
    """What ``jaxmm --help`` prints."""
    lines = [f"  {name:<16} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxmm COMMAND --FLAG=VALUE --config.KEY=VALUE",
            "",
            *lines,
            "",
            "jaxmm COMMAND --help lists its flags and config keys; jaxmm --version prints the version.",
        ]
    )


def main() -> int:
    """Runs the command that the first argument names; returns the exit status where there is none to run."""
    with closed_pipe.quiet():
        return _main()


def _main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--version", "-V", "version"):
        print(f"jaxmm {jaxmm.__version__}")
        return 0
    if name in ("--help", "-h", "help"):
        print(usage())
        return 0
    module = name.replace("-", "_")
    if module not in COMMANDS:
        hint = nearest(module, COMMANDS) or f": the commands are {', '.join(COMMANDS)}"
        print(error_line(f"no command '{name}'{hint}"), file=sys.stderr)
        return 1
    del sys.argv[1]
    runpy.run_module(f"jaxmm.{module}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
