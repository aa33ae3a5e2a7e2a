"""Disks that are full: a limit on the size of files, or a small file system of its own where mounting is allowed.

What is told must be one line; with room again, the same command must come to the end of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from faulting.bench import Bench, contents
from faulting.trial import HANDLED, LINE, SILENT, Ended, Trial, judged

ROOM = 256 << 20  # bytes, which are enough for all


def trials(bench: Bench, rng: random.Random) -> Iterator[Trial]:
    command = rng.choice(("train", "train", "prepare", "export"))
    size = int(2 ** rng.uniform(10, 22))
    with contextlib.ExitStack() as stack:
        folder = bench.place()
        is_mounted = rng.random() < 0.5 and mounted(folder, size)
        if is_mounted:
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
        run, wrong = _command(bench, command, folder)
        verdict, told = judged(run(0 if is_mounted else size), wrong)
        if verdict == LINE:
            if is_mounted:
                resized(folder, ROOM)
            again, why = judged(run(0), wrong)
            if again != HANDLED:
                verdict, told = SILENT if again == LINE else again, f"with room again: {why}"
    where = "on a file system" if is_mounted else "with files"
    yield Trial("", f"{command} {where} of {size} bytes", verdict, told)


def _command(bench: Bench, command: str, folder: Path) -> tuple[Callable[[int], Ended], Callable[[], str]]:
    """Runs it in the folder, with a limit on files; and says what is wrong with what it left."""
    output = folder / "output"
    if command == "train":
        return lambda size: bench.train(output, file_bytes=size), lambda: bench.wrong_run(output)
    if command == "export":
        module, argv = "jaxmm.export", [f"--workdir={bench.whole}", f"--output={output}"]
    else:
        module, argv = "jaxmm.prepare", [f"--input={bench.data}", f"--output={output}"]
    reference = bench.folder / f"{command}-with-room"
    if not reference.exists():
        bench.run(module, [*argv[:-1], f"--output={reference}"])

    def wrong() -> str:
        left = sorted(path.name for path in folder.iterdir() if path != output)
        if left:
            return f"left {', '.join(left)}"
        names = [name for name, data in contents(reference).items() if contents(output).get(name) != data]
        return f"{names[0]} is another" if names else ""

    return lambda size: bench.run(module, argv, file_bytes=size), wrong


def mounted(folder: Path, size: int) -> bool:
    """Whether a file system of that size could be mounted there."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def resized(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], capture_output=True, check=True)
