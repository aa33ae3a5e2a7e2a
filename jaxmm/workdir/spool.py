"""The local folder of a run whose workdir is in an object store.

All that a run writes it writes here, as in any workdir; whole files go to the store by their names, where they take
the place of the one before at once. Checkpoints go by ``checkpoints/stored.py``. What the store has is the truth: a
spool that was not the last one to write to it begins with what is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from jaxmm.atomic import read_json, write_json
from jaxmm.errors import UserError
from jaxmm.workdir.folder import LOCK
from jaxmm.workdir.objects import Objects, StoreError
from jaxmm.workdir.own_folders import MARK as OF_THIS_RUN
from jaxmm.workdir.place import Place, is_url

MARK = ".store.json"  # in a spool: the URL, and the token of its last writing
SENT = ".sent.json"  # in a spool: size, time and tag of each file that the store has, by name
OWNER = "spool.json"  # in the store: the token of the spool that wrote last
CHECKPOINTS = "checkpoints"
KEPT = "config.json"  # no run removes it: where it is gone, somebody has cleaned the folder, and nothing is deleted
_READ = ".read"  # ends the name of a spool of commands that only read
_EVERY = 15.0  # seconds from one look for changed files to the next


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Spool:
    """A folder that stands for one in a store."""

    def __init__(self, folder: Path, place: Place, say: Callable[[str], None] = _to_stderr) -> None:
        self.folder, self.objects = folder, Objects(place, say=say)
        self._say = say

    @classmethod
    def make(cls, place: Place, kind: str = "") -> Spool:
        """The spool of a place on this machine; ``kind`` tells apart those of one place that must not be one."""
        root = spool_root()
        name = re.sub(r"[^\w.-]", "_", place.path.rpartition("/")[2])[:60]
        folder = root / f"{name}-{hashlib.sha256(place.url.encode()).hexdigest()[:12]}{kind}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if read_json(folder / MARK).get("url") != place.url:
                write_json(folder / MARK, {"url": place.url, "token": ""})
        except OSError as error:
            raise UserError(
                f"{folder}: the spool of {place.url} cannot be made ({error.strerror}): name another folder for "
                f"spools by JAXMM_SPOOL"
            ) from error
        return cls(folder, place)

    @classmethod
    def of(cls, folder: Path) -> Spool | None:
        """That which the folder is; None for an ordinary workdir."""
        url = read_json(folder / MARK).get("url")
        return cls(folder, Place.read("--workdir", url)) if isinstance(url, str) else None

    def for_process(self, number: int) -> Spool:
        """That of another process than the first of a job, which may have the disk of the first or another."""
        return Spool.make(self.objects.place, f".process{number}")

    @property
    def url(self) -> str:
        return self.objects.place.url

    @property
    def only_reads(self) -> bool:
        """Whether nothing is here but copies of what the store has."""
        return self.folder.name.endswith(_READ)

    def fetch(self, *, reads: bool = False) -> None:
        """Makes the small files here those of the store. Several processes may ask at once.

        Args:
          reads: for a command that only reads: the lock is fetched too, whose time says whether the run goes on.
        """
        with self.alone():
            sent = self._sent()
            apart = (OWNER,) if reads else (OWNER, LOCK)
            all_names = self.objects.names()
            names = [name for name in all_names if not name.startswith(f"{CHECKPOINTS}/") and name not in apart]
            if any(name.startswith(f"{CHECKPOINTS}/") for name in all_names):
                (self.folder / CHECKPOINTS).mkdir(exist_ok=True)
            if any(".." in name.split("/") or name.startswith("/") for name in names):
                raise UserError(f"{self.url} has objects with '..' in their names: it is no folder of a run")

            def take(name: str) -> None:
                path = self.folder / name
                is_here = name in sent and _stat(path) == sent[name][:2]
                found = self.objects.read_tagged(name, bytes.fromhex(str(sent[name][2])) if is_here else None)
                if found is None:  # gone since it was listed
                    return
                data, tag = found
                if not is_here or tag.hex() != sent[name][2]:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    half = path.with_name(f".{path.name}.half")
                    half.write_bytes(data)
                    half.replace(path)
                    sent[name] = [*_stat(path), tag.hex()]

            self.objects.each(take, names)
            for name in {*self._files(), *([LOCK] if reads else [])} - set(names):
                (self.folder / name).unlink(missing_ok=True)
            self._note_sent({name: of for name, of in sent.items() if name in names})

    def own(self) -> bool:
        """Begins to write, as the holder of the store's lock. Returns whether this spool was the last to write before.

        Then what it could not send is sent now. Else it begins with what the store has.
        """
        mark = read_json(self.folder / MARK)
        token = str(mark.get("token") or "")
        owner = self.objects.read(OWNER)
        if token and owner == token.encode():
            self._bring_back()
            self.send()
            return True
        if token:
            self._say(f"{self.url} was written to from elsewhere, or emptied, since {self.folder} was: going on from "
                      f"what is there")  # fmt: skip
        self.empty()
        self.fetch()
        token = secrets.token_hex(8)
        write_json(self.folder / MARK, {"url": self.url, "token": token})
        self.objects.write(OWNER, token.encode())
        return False

    def _bring_back(self) -> None:
        """Fetches the files that somebody has removed from here, as cleaners of caches do."""
        gone = {*self._sent()} - {*self._files(), LOCK}
        if KEPT not in gone:
            return
        self._say(f"files of {self.folder} were removed by somebody else: fetching {len(gone)} of {self.url}")

        def bring(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # it is gone from the store too
                self.objects.download(name, self.folder / name)

        self.objects.each(bring, gone)

    def empty(self) -> None:
        """Removes all that is here but the lock and the spool's own notes."""
        for path in self.folder.iterdir():
            if path.name == SENT or not (path.name.startswith(".") or path.name == LOCK):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def send(self, objects: Objects | None = None) -> None:
        """Sends the small files that have changed, and deletes those that are gone.

        Args:
          objects: by which, where another patience is wanted.

        Raises:
          StoreError: if the store refuses, or is away for too long: the rest is sent by the next call.
        """
        objects = objects or self.objects
        with self.alone():
            sent = self._sent()
            try:
                there = {name: _stat(self.folder / name) for name in self._files()}
                objects.each(
                    lambda name: self._send_one(name, sent, objects),
                    [name for name, stat in there.items() if stat and sent.get(name, [])[:2] != stat],
                )
                gone = [name for name in sent if name not in there and name != LOCK]
                for name in gone if KEPT not in gone else ():
                    objects.delete(name)
                    del sent[name]
            finally:
                self._note_sent(sent)

    def send_file(self, path: Path) -> None:
        """Sends one file of the spool."""
        with self.alone():
            sent = self._sent()
            self._send_one(path.relative_to(self.folder).as_posix(), sent, self.objects)
            self._note_sent(sent)

    def _send_one(self, name: str, sent: dict[str, list[int | str]], objects: Objects) -> None:
        path = self.folder / name
        stat = _stat(path)  # before it is read: what is added meanwhile is sent the next time
        with contextlib.suppress(FileNotFoundError):
            tag = objects.write(name, path.read_bytes())
            sent[name] = [*stat, tag.hex()]

    def _files(self) -> Iterator[str]:
        """Names of the small files that are here."""
        for at, folders, names in os.walk(self.folder):
            inside = Path(at).relative_to(self.folder)
            if inside == Path():
                folders[:] = [name for name in folders if name != CHECKPOINTS]
            for name in names:
                if (not name.startswith(".") or name == OF_THIS_RUN) and (inside / name).as_posix() != LOCK:
                    yield (inside / name).as_posix()

    def _sent(self) -> dict[str, list[int | str]]:
        return {name: of for name, of in read_json(self.folder / SENT).items() if isinstance(of, list) and len(of) == 3}

    def _note_sent(self, sent: dict[str, list[int | str]]) -> None:
        write_json(self.folder / SENT, sent)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other threads and processes of this machine from fetching into the folder and sending what is in it."""
        with (self.folder / ".lock").open("w") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Mirror:
    """Sends the small files of a spool while a run writes them, in a thread; a context manager, whose end sends all."""

    def __init__(self, spool: Spool, every: float = _EVERY) -> None:
        self._spool, self._every = spool, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self._spool.send()
        except (StoreError, OSError) as away:
            line = (
                f"{self._told(away)}: what is not there yet stays in {self._spool.folder}, and the same command on "
                f"this machine sends it first"
            )
            if error is None:
                raise UserError(line) from away
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def _live(self) -> None:
        objects, is_told = Objects(self._spool.objects.place, patience=self._every, say=lambda line: None), False
        while not self._ended.wait(self._every):
            try:
                self._spool.send(objects)
                is_told = False
            except (StoreError, OSError) as away:  # the next look sends it; the spool's disk may be full for a while
                if not is_told:
                    _to_stderr(f"warning: {self._told(away)}: the run goes on, and what is not there yet stays in "
                               f"{self._spool.folder}")  # fmt: skip
                is_told = True

    def _told(self, error: StoreError | OSError) -> str:
        """What the store says, or the disk."""
        if isinstance(error, StoreError):
            return str(error)
        return f"{error.filename or self._spool.folder}: {error.strerror or error}"


def opened(flag: str, text: str, reads: bool) -> str:
    """The folder that a flag's value means: for a URL, a spool of it.

    Args:
      reads: whether the command only reads there: a run that writes has a spool of its own.

    Raises:
      UserError: if the URL is none of a store, there is nothing, or the store refuses.
    """
    if not is_url(text):
        return os.path.expanduser(text)
    spool = Spool.make(Place.read(flag, text), _READ if reads else "")
    if reads:
        spool.fetch(reads=True)
        if not any(spool._files()):
            raise UserError(f"{flag}={text}: there is nothing in the store below this name")
    return str(spool.folder)


def publish(path: Path) -> None:
    """Sends a file that a command has written into a run's folder, if that stands for one in a store."""
    if spool := Spool.of(path.parent):
        spool.send_file(path)


def name_of(folder: Path) -> str:
    """The name by which a user knows a workdir: its URL, or its path."""
    spool = Spool.of(folder)
    return spool.url if spool else str(folder)


def spool_root() -> Path:
    """The folder of all spools of this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmm"
    return Path(os.environ.get("JAXMM_SPOOL") or cache / "spool").expanduser().absolute()


def _stat(path: Path) -> list[int]:
    """Size and time; [] where there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]
