"""The objects of one folder in a store, by TensorStore: read, written whole, listed, with patience where it is away."""

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jaxmm.atomic import published
from jaxmm.errors import UserError
from jaxmm.workdir.place import Place

if TYPE_CHECKING:  # importing it takes a while: those who use a store do
    import tensorstore

T = TypeVar("T")

PATIENCE = 600.0  # seconds that a store may be away; JAXMM_STORE_SECONDS changes it
_CALL = 120.0  # seconds after which a request without an answer is made again
_SLOWEST = 1e6  # bytes a second, of a large object that is sent
_TELL = 5.0  # seconds after which a store that is away is told of
_BLOCK = 1 << 26  # bytes
_THREADS = 4  # each holds one object in memory
# Of the answers that are no use to repeat; TensorStore's errors begin with absl's name of their kind.
_FINAL = re.compile("INVALID_ARGUMENT|NOT_FOUND|PERMISSION_DENIED|UNAUTHENTICATED|FAILED_PRECONDITION|UNIMPLEMENTED")
_PASSING = re.compile("ABORTED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED")  # whatever their HTTP status
_SHORT = "OUT_OF_RANGE"  # of a read beyond the object's end
_RIGHTS = re.compile("PERMISSION_DENIED|UNAUTHENTICATED|(ExpiredToken|InvalidToken|TokenRefreshRequired):")
_CODE = re.compile(r"http_response_code='(\d+)'")
_INNER = re.compile(r"All \d+ retry attempts failed: ")
_WAYS = {
    "gs": "log in by `gcloud auth application-default login`, or give the machine's service account its role",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "file": "give yourself the right to it",
}


class StoreError(UserError):
    """The store refuses."""


class StoreAway(StoreError):
    """The store gives no answer, or none of use, for longer than it may."""


class CutShort(StoreError):
    """The object ends before the bytes that are asked of it."""


class Objects:
    """The objects below one place, each with a name such as ``samples/40.json``.

    A tag is the store's own of one content of an object (GCS: its generation; S3: its ETag).

    Args:
      place: where they are.
      patience: seconds that the store may be away; None takes JAXMM_STORE_SECONDS, or PATIENCE.
      say: prints a line.
    """

    def __init__(
        self,
        place: Place,
        patience: float | None = None,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self.place, self._say = place, say
        self._patience = _asked_patience() if patience is None else patience
        self._opened: tensorstore.KvStore | None = None

    def read(self, name: str) -> bytes | None:
        """The whole object; None where there is none."""
        found = self.read_tagged(name)
        return found and found[0]

    def read_tagged(self, name: str, but: bytes | None = None) -> tuple[bytes, bytes] | None:
        """The object and its tag; None where there is none, and empty bytes where its tag is still ``but``."""
        found = self._tried(f"reading {name}", lambda store: store.read(name, if_not_equal=but))
        return None if found.state == "missing" else (found.value, but or b"" if found.state == "unspecified" else
                                                      found.stamp.generation)  # fmt: skip

    def write(self, name: str, data: bytes) -> bytes:
        """Puts the object there, whole or not at all. Returns its tag."""
        seconds = _CALL + len(data) / _SLOWEST
        return self._tried(f"writing {name}", lambda store: store.write(name, data), seconds).generation

    def write_if(self, name: str, data: bytes | None, tag: bytes | None) -> bytes | None:
        """Writes if the object still has the tag, or with None if there is no such object. Returns the new tag.

        Data of None deletes it. A result of None means that it was not written, or that the answer to a write was lost
        and the next try met its own work: who must know reads it.
        """
        tag = _NONE if tag is None else tag
        return self._tried(f"writing {name}", lambda store: store.write(name, data, if_equal=tag)).generation or None

    def delete(self, name: str) -> None:
        """Deletes the object, if it is there."""
        self._tried(f"deleting {name}", lambda store: store.write(name, None))

    def delete_all(self, names: Iterable[str]) -> None:
        """Deletes objects, several at a time."""
        self.each(self.delete, names)

    def names(self, prefix: str = "") -> list[str]:
        """The names of all objects that begin with ``prefix``, in their order.

        Without those that end in '/': consoles of stores make an empty one for each folder.
        """
        import tensorstore

        after = f"{prefix[:-1]}{chr(ord(prefix[-1]) + 1)}" if prefix else ""
        wanted = tensorstore.KvStore.KeyRange(prefix, after)
        found = [name.decode() for name in self._tried(f"listing {prefix}", lambda store: store.list(wanted))]
        return sorted(name for name in found if name and not name.endswith("/"))

    def upload(self, path: Path, name: str) -> None:
        """Puts a file there."""
        self.write(name, path.read_bytes())

    def download(self, name: str, path: Path, size: int = 0) -> None:
        """Copies an object to a file, which is there when it is whole.

        Args:
          size: bytes; with it, a large object comes in blocks.

        Raises:
          FileNotFoundError: if there is no such object.
        """
        with published(path) as half, half.open("wb") as out:
            for block in self.blocks(name, size):
                out.write(block)

    def blocks(self, name: str, size: int = 0) -> Iterator[bytes]:
        """The bytes of an object, a large one of known size in blocks; fewer where it has been cut short.

        Raises:
          FileNotFoundError: if there is no such object.
        """
        for start in range(0, max(size, 1), _BLOCK):
            try:
                found = self._read_part(name, slice(start, min(start + _BLOCK, size)) if size > _BLOCK else None)
            except CutShort:  # its end proves that, as that of a small one does
                return
            if found.state == "missing":
                raise FileNotFoundError(2, "is not in the store", f"{self.place.url}/{name}")
            yield found.value

    def _read_part(self, name: str, part: slice | None) -> tensorstore.KvStore.ReadResult:
        return self._tried(f"reading {name}", lambda store: store.read(name, byte_range=part))

    def array_store(self, inside: str) -> dict[str, Any]:
        """TensorStore's spec of an OCDBT array store in a folder, whose name ends in '/'."""
        base = self.place.spec
        return {"driver": "ocdbt", "base": base | {"path": base["path"] + inside}}

    def tried(self, what: str, begin: Callable[[tensorstore.Context], tensorstore.Future[T]]) -> T:
        """The answer to a request of the caller's, made again while the store is away, as the others are."""
        return self._tried(what, lambda store: begin(self._context))

    def join_array_stores(self, inside: str, parts: Sequence[str]) -> None:
        """Writes an index over OCDBT array stores, which lie in folders of one that gets it; all names end in '/'."""
        import tensorstore

        def opened(name: str) -> tensorstore.KvStore:
            return tensorstore.KvStore.open(self.array_store(name), context=self._context).result()

        def join(store: tensorstore.KvStore) -> tensorstore.Future[Any]:
            whole, transaction = opened(inside), tensorstore.Transaction(atomic=True)
            copies = [
                opened(f"{inside}{part}").experimental_copy_range_to(whole.with_transaction(transaction))
                for part in parts
            ]
            for copy in copies:
                copy.result()
            return transaction.commit_async()

        self._tried(f"joining {inside}", join)

    def each(self, do: Callable[[Any], object], items: Iterable[Any]) -> None:
        """Does something with each item, several at a time. Raises the first error."""
        with ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(do, items):
                pass

    def _store(self) -> tensorstore.KvStore:
        import tensorstore

        if self._opened is None:
            self._context = tensorstore.Context(self.place.context)
            self._opened = tensorstore.KvStore.open(self.place.spec, context=self._context).result()
        return self._opened

    def _tried(
        self, what: str, begin: Callable[[tensorstore.KvStore], tensorstore.Future[T]], seconds: float = _CALL
    ) -> T:
        """The answer to a request, which is made again and again while the store is away.

        Raises:
          StoreAway: if it is for longer than it may be.
          StoreError: if it refuses.
        """
        began, pause, is_told = time.monotonic(), 0.2, False
        while True:
            try:
                return begin(self._store()).result(timeout=seconds)
            except (ValueError, OSError, RuntimeError, LookupError) as error:  # a TimeoutError is an OSError
                why = _INNER.sub("", " ".join(str(error).split(" [http")[0].split()))
                why = why or f"no answer within {seconds:.0f} s"
                self._refuse(str(error), why)
                away = time.monotonic() - began
                if away + pause > self._patience:
                    raise StoreAway(f"{self.place.url} is away since {away:.0f} s ({what}: {why[:200]})") from error
                if away > _TELL and not is_told:
                    is_told = True
                    self._say(f"warning: {self.place.url} is away ({what}: {why[:200]}): trying again, "
                              f"{self._patience:.0f} s at most")  # fmt: skip
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 10)

    def _refuse(self, told: str, why: str) -> None:
        """Raises StoreError for an answer that will not change by itself."""
        code = match[1] if (match := _CODE.search(told)) else ""
        place, kind = self.place, _FINAL.match(told)
        if told.startswith(_SHORT) or code == "416":
            raise CutShort(f"{place.url} is not whole ({why[:200]}): give an older checkpoint, or put it back")
        is_denied = code in ("401", "403") or _RIGHTS.match(told)
        if code in ("408", "429") or not (kind or code.startswith("4")) or (_PASSING.match(told) and not is_denied):
            return
        if is_denied:
            raise StoreError(f"{place.url} may not be used ({why[:200]}): {_WAYS[place.scheme]}")
        if "credentials" in told.lower():
            raise StoreError(f"{place.url}: there are no credentials for it ({why[:200]}): {_WAYS[place.scheme]}")
        if kind and kind[0] == "NOT_FOUND" and " chunk " in told:
            raise StoreError(f"{place.url} is not whole ({why[:300]}): give an older checkpoint, or put it back")
        if code == "404" or (kind and kind[0] == "NOT_FOUND"):
            raise StoreError(
                f"{place.url}: there is no bucket '{place.bucket}' ({why[:200]}): make it, or name another"
            )
        raise StoreError(f"{place.url} refuses ({why[:200]})")


def _asked_patience() -> float:
    text = os.environ.get("JAXMM_STORE_SECONDS") or str(PATIENCE)
    if not text.replace(".", "", 1).isdecimal():
        raise UserError(f"JAXMM_STORE_SECONDS={text}: give seconds, 0 or more")
    return float(text)


_NONE = b"\x02"  # TensorStore's tag of an object that is not there
