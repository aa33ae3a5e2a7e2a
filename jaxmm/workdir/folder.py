"""The folder of a run: its name, who trains in it, and whether the run has ever completed a save."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxmm.atomic import read_json, read_lines, write_json
from jaxmm.errors import UserError, end_at_once
from jaxmm.json_text import parse_json
from jaxmm.workdir import holder
from jaxmm.workdir.place import is_url

LOCK, FIRST_SAVE = "train.lock", "first_save.json"


def local(name: str, text: str) -> str:
    """A folder's path as it is used, '~' spelled out.

    Raises:
      UserError: for a URL, which would become folders named after its scheme.
    """
    if is_url(text):
        raise UserError(f"{name}={text}: a URL is not supported here: give a folder of a mounted file system")
    return os.path.expanduser(text)


# Saves


def note_first_save(workdir: Path, step: int) -> None:
    """Notes that the save of a step is complete, if none was before; with 0, that none is yet."""
    noted = _noted(workdir)
    if noted is None or (step and not noted):
        write_json(workdir / FIRST_SAVE, {"step": step})


def has_saved(workdir: Path | None, every: int = 0) -> bool:
    """Whether the run has once completed a save, whatever has become of it: what it began with no longer counts.

    Args:
      every: steps from a save to the next, where the run's config does not say them. By them is judged what version 0.1
        left, which noted nothing.
    """
    if workdir is None:
        return False
    folder, noted = workdir / "checkpoints", _noted(workdir)
    if noted or (folder.is_dir() and any(_is_save(path) for path in folder.iterdir())):
        return True
    if noted is not None:
        return False
    group = read_json(workdir / "config.json").get("checkpoint")
    said = group.get("every") if isinstance(group, dict) else 0
    every = said if isinstance(said, int) and said > 0 else every
    steps = [line.get("step") for line in read_lines(workdir / "metrics.jsonl")]
    return (workdir / "summary.json").exists() or any(isinstance(n, int) and n > every > 0 for n in steps)


def _is_save(path: Path) -> bool:
    """Whether it is a checkpoint, whole or broken since: it has its name only once it is complete."""
    return bool(re.fullmatch("0|[1-9][0-9]*", path.name)) and path.is_dir()


def _noted(workdir: Path) -> int | None:
    try:
        return int(parse_json((workdir / FIRST_SAVE).read_bytes())["step"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError):
        return 1  # damaged: better a line too many than a run begun anew


# The lock


class Claim:
    """Holds a workdir for one ``train``; a context manager. Whoever only reads needs none.

    On one machine the kernel keeps the lock and lets go of it when its holder dies. A file system may keep locks for
    each machine alone, or for each mount, as those do that a container mounts by itself; or it may keep those of a
    machine that has died. So the holder also sets the file's time again and again, and one of another machine or mount
    that gives no sign for ``silence`` seconds no longer counts.

    Args:
      workdir: made if it is not there. On the way out it is removed again if nothing else is in it.
      say: prints a line.
      beat: seconds from a sign of life to the next.
      silence: seconds without one after which a holder elsewhere is dead.
    """

    def __init__(
        self,
        workdir: Path,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        beat: float = 15,
        silence: float = 90,
    ) -> None:
        self._workdir, self._path, self._say = workdir, workdir / LOCK, say
        self._beat, self._silence = beat, silence
        self._record = holder.note()
        self._made: list[Path] = []  # folders, the innermost last
        self._file = -1
        self._ended = threading.Event()
        self._signs = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Claim:
        try:
            self._make_folder()
            self._file = self._take()
        except OSError as error:
            self._remove_folders()
            raise UserError(f"{self._workdir}: nothing can be written here ({error.strerror})") from error
        except BaseException:
            self._remove_folders()
            raise
        self._signs.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._signs.join()  # before the file is closed, and its number another file's
        with contextlib.suppress(OSError):
            if self._is_ours():
                self._path.unlink()  # while it is held: whoever waits finds that it is no longer the one
        os.close(self._file)
        self._remove_folders()

    def _make_folder(self) -> None:
        if self._workdir.exists() and not self._workdir.is_dir():
            raise UserError(f"--workdir {self._workdir} is a file: give a folder")
        missing = [path for path in (self._workdir, *self._workdir.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._made.append(path)

    def _remove_folders(self) -> None:
        """Those that this made and that are empty."""
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                path.rmdir()

    def _take(self) -> int:
        """The file, locked and with our record."""
        while True:
            try:
                file, is_new = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
            except FileExistsError:
                try:
                    file, is_new = os.open(self._path, os.O_RDWR), False
                except FileNotFoundError:
                    continue
            try:
                self._record["device"] = os.fstat(file).st_dev
                if self._is_free(file, is_new):
                    os.ftruncate(file, 0)
                    os.pwrite(file, json.dumps(self._record).encode(), 0)
                    os.fsync(file)
                    if not is_new:
                        time.sleep(min(1, self._silence / 10))  # another machine may do the same
                    if is_new or self._is_ours():
                        return file
            except BaseException:
                if is_new:  # a full disk took the name, and nothing in it
                    self._path.unlink(missing_ok=True)
                os.close(file)
                raise
            os.close(file)

    def _is_free(self, file: int, is_new: bool) -> bool:
        """Whether the file is ours to write to; if not, it has gone, and another try is due.

        Raises:
          UserError: if somebody trains here.
        """
        is_locked, has_locks = False, True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_locked = True
        except OSError:  # the file system has no locks
            has_locks = False
        if is_new and not is_locked:
            return True
        if is_new or not self._is_at_path(file):
            return False
        held_by = _read(file)
        if not held_by and has_locks and not is_locked:  # its maker was slower than we, or was killed at once
            return True
        is_here = all(held_by.get(key) == self._record[key] for key in ("machine", "device"))
        if is_locked and is_here and not holder.has_ended(held_by):
            raise held(self._workdir, held_by)
        if (is_locked or not (has_locks and is_here)) and not self._falls_silent(held_by):
            return False
        if is_locked:  # by a machine that is gone, or by a child of the dead: the lock is that file's alone
            self._path.unlink(missing_ok=True)
            return False
        return True

    def _falls_silent(self, held_by: dict[str, Any]) -> bool:
        """Waits until the holder has given no sign of life for long enough; False if its file has gone meanwhile.

        Raises:
          UserError: if it gives one.
        """
        seen = os.stat(self._path).st_mtime_ns
        age = min(max(0.0, (self._now_there() - seen) / 1e9), self._silence)
        who, left = holder.who(held_by), self._silence - age
        if left:
            self._say(f"{self._workdir} was last trained in by {who}: waiting up to {left:.0f} s for a sign of life")
        end = time.monotonic() + left
        while time.monotonic() < end:
            time.sleep(min(1, self._silence / 20))
            try:
                # Opened anew: NFS looks at the server only then.
                with self._path.open("rb") as file:
                    if _read(file.fileno()).get("token") != held_by.get("token"):
                        return False
                    if os.fstat(file.fileno()).st_mtime_ns != seen:
                        raise held(self._workdir, held_by)
            except FileNotFoundError:
                return False
        self._say(f"{self._workdir} was last trained in by {who}, which gives no sign of life any more: going on")
        return True

    def _now_there(self) -> int:
        """The time by the clock that gives files their times, in ns: that of a server may differ from ours."""
        probe = self._path.with_name(f".{LOCK}.{self._record['token']}")
        try:
            probe.touch()
            return probe.stat().st_mtime_ns
        finally:
            probe.unlink(missing_ok=True)

    def _is_at_path(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file))
        except FileNotFoundError:
            return False

    def _is_ours(self) -> bool:
        with self._path.open("rb") as file:
            return bool(_read(file.fileno()).get("token") == self._record["token"])

    def _live(self) -> None:
        """Gives a sign of life until the end."""
        while not self._ended.wait(self._beat):
            with contextlib.suppress(OSError):  # a file system that is away for a while
                os.utime(self._file)
                if not self._is_ours() and not self._ended.is_set():
                    end_at_once(f"{self._workdir}: another train has taken over while this one stood still")


def held(workdir: Path | str, held_by: dict[str, Any]) -> UserError:
    """Somebody else trains there."""
    return UserError(
        f"{workdir} is being trained in by {holder.who(held_by)}: wait for its end or stop it, or give another "
        f"--workdir"
    )


def _read(file: int) -> dict[str, Any]:
    return holder.read(os.pread(file, 4096, 0))
