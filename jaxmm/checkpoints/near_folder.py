"""Where the near checkpoints of a run lie on a node: in a folder of its own, below one that runs may share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from jaxmm.errors import UserError
from jaxmm.workdir.folder import local

TRIES = 100  # to write in a folder that other processes make and remove
_PART = re.compile(r"\.?(\d+)\.(\d+)\.\d+(\.half)?")  # step, start and place of a part; one that is being written


class NearFolder:
    """The folder of one run.

    Args:
      asked: ``config.checkpoint.near_dir``; '' is a folder of this user in the system's temporary one.
      name: of the workdir.
      number: of the run: of two runs whose workdirs have one path, as in containers, each has its own.
    """

    def __init__(self, asked: str, name: str, number: int) -> None:
        given = local("config.checkpoint.near_dir", asked)
        self.root = Path(given or Path(tempfile.gettempdir()) / f"jaxmm-near-{os.getuid()}").absolute()
        short = re.sub(r"[^\w.-]", "_", name.rpartition("/")[2])[:60]
        self._of_path = f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:12]}-"
        self.path = self.root / f"{self._of_path}{number:x}"

    def check(self) -> None:
        """Raises UserError where nothing can be written. Leaves nothing."""
        for tries_left in reversed(range(TRIES)):
            made = [path for path in (self.path, *self.path.parents) if not path.exists()]
            try:
                self.make()
                tempfile.TemporaryFile(dir=self.path).close()
                return
            except OSError as error:
                if isinstance(error, FileNotFoundError) and tries_left:
                    continue  # another process of this node looks too, and has removed what it had made
                raise UserError(
                    f"{self.path}: near checkpoints cannot be written there ({error.strerror}): name another folder "
                    f"by config.checkpoint.near_dir"
                ) from error
            finally:
                for path in made:
                    with contextlib.suppress(OSError):  # it was not made, or another process has put something there
                        path.rmdir()

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def others_line(self) -> str:
        """Names what lies here of other runs whose workdirs had the same path, '' for nothing."""
        others = [path for path in self.root.glob(f"{self._of_path}*") if path != self.path]
        # os.walk passes over what its run removes meanwhile.
        size = sum(_size(Path(at, name)) for folder in others for at, _, names in os.walk(folder) for name in names)
        if not size:
            return ""
        few = ", ".join(map(str, sorted(others)[:3])) + (" ..." if len(others) > 3 else "")
        return (
            f"near checkpoints of other runs whose workdirs had this path, {size / 1e9:.3g} GB, are in {few}: remove "
            f"them if none of these runs goes on"
        )

    def parts(self) -> list[Path]:
        """The folders of parts that are written to their end."""
        return sorted(self.path.glob("[0-9]*"))

    def remove(self, *, up_to: int) -> None:
        """Removes what is of a step or of one before it, and the folder if nothing is left."""
        for path in self.path.glob("*"):
            if (match := _PART.fullmatch(path.name)) and int(match[1]) <= up_to:
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def remove_others(self, start: int, after: int) -> None:
        """Removes what is of later steps than ``after``, or unfinished; not what this start, ``start``, has written."""
        for path in self.path.glob("*"):
            match = _PART.fullmatch(path.name)
            if match and int(match[2]) != start and (match[3] or int(match[1]) > after):
                shutil.rmtree(path, ignore_errors=True)

    def keep_newest(self, count: int, place: int) -> None:
        """Removes what is older than the newest ``count`` of a process, by its place."""
        steps = sorted({_step(path) for path in self.path.glob(f"[0-9]*.{place}")})
        for path in self.parts():
            if len(steps) >= count and _step(path) < steps[-count]:
                shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.partition(".")[0])


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
