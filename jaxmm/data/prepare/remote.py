"""Prepared folders in buckets: the parts that are used are copied into the cache, and a finished folder is uploaded.

Shards are only read from a local disk: from a URL that it does not know, ArrayRecord reads no records and raises no
error.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from jaxmm.atomic import published
from jaxmm.data import files
from jaxmm.data.prepare.disk import space_wanted
from jaxmm.data.prepare.lock import locked
from jaxmm.errors import UserError


def default_cache() -> Path:
    """The default folder for prepared data and copies."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmm"


def mirror_folder(url: str, meta: dict[str, Any], cache: Path) -> Path:
    """Returns the local folder that mirrors a prepared one at a URL; one for each content, wherever that lies.

    ``meta`` comes from ``read_meta``, so that the names in it are bare.
    """
    folder = cache / "remote" / files.bare(f"{url.rstrip('/').rpartition('/')[2]}-{meta['fingerprint'][:16]}")
    folder.mkdir(parents=True, exist_ok=True)
    with published(folder / "meta.json") as temporary:
        temporary.write_text(json.dumps(meta, indent=1) + "\n")
    return folder


def fetch(url: str, path: Path, size: int = -1) -> None:
    """Copies a file to a local path, unless it is there already, with that size if one is given.

    Several processes may ask at once: one copies, the others wait.

    Raises:
      UserError: if it is missing, cannot be read, or has another size.
    """
    if path.is_file() and size in (-1, path.stat().st_size):
        return
    with locked(path.with_name(f".{path.name}.lock")):
        if path.is_file() and size in (-1, path.stat().st_size):
            return
        with space_wanted(path.parent), published(path) as temporary:
            try:
                source = files.open_binary(url)
            except FileNotFoundError as error:
                raise UserError(f"{url} is not there: prepare its folder again") from error
            except OSError as error:
                raise UserError(f"{url} cannot be read: {error}") from error
            with source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
                copied = target.tell()
            if size not in (-1, copied):
                raise UserError(f"{url} has {copied} bytes of its {size}: prepare its folder again")


def put(folder: Path, url: str) -> None:
    """Uploads a finished folder to a URL. meta.json, which makes it complete, comes last; files already there stay.

    Raises:
      UserError: if the store refuses.
    """
    import fsspec  # only where a URL is given

    fs, place = fsspec.core.url_to_fs(url)
    names = sorted((f.name for f in folder.iterdir()), key=lambda name: (name == "meta.json", name))
    try:
        for name in names:
            local, target = folder / name, f"{place.rstrip('/')}/{name}"
            is_there = fs.exists(target) and fs.info(target)["size"] == local.stat().st_size
            if name == "meta.json" or not is_there:
                fs.makedirs(place, exist_ok=True)
                fs.put_file(str(local), target)
    except OSError as error:
        raise UserError(f"{url}: cannot be written to: {error}") from error
