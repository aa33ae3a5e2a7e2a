"""The door to data: what a path is (a description, a file, a folder, a pattern), and the sources in it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.data import files
from jaxmm.data.documents import Source
from jaxmm.data.readers import alpaca, containers, conversations, dataset_info, interleaved
from jaxmm.data.readers.containers import SUFFIXES, Format
from jaxmm.data.readers.parts import LeftOut
from jaxmm.data.readers.pictures import Pictures
from jaxmm.errors import UserError, nearest

HEAD = 100  # records that are looked at for one that tells the format
WILD = "*?["
# What lies beside data and is none: datasets' own notes, and what tells of a folder.
NOTES = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json", "requirements.txt", "readme.txt")


def read_sources(path: str, names: Sequence[str], *, media_dir: str = "", follow_outside: bool = False) -> list[Source]:
    """Opens data sources, reading no more of them than their format needs.

    Args:
      path: local or a URL: a LLaMA-Factory ``dataset_info.json`` or the folder that holds one, whose entries the names
        are; a folder that ``datasets`` saved with splits, whose names they are; or a data file, a folder of data files
        of one kind, or a pattern as ``shards/*.tar``: a single source, in a format that its first record tells, named
        as the file without its suffix, as the folder, or as what precedes the pattern's first wildcard.
      names: of the sources wanted, in order.
      media_dir: the folder that images' paths are relative to; by default that of the dataset_info.json or the data.
      follow_outside: whether a path in a record may lead out of the data's folder and ``media_dir``.

    Raises:
      UserError: for a file, an entry or a column that is not there or not supported. A record that makes no sense
        raises it later, from ``Source.read``: images that differ in number from their placeholders, most of all.
    """
    path = files.absolute(path)
    media = files.absolute(media_dir) if media_dir else ""
    if files.is_folder(path):
        if files.is_file(splits := files.join(path, "dataset_dict.json")):
            return [_folder(p, media, follow_outside) for p in _splits(path, splits, names)]
        info = files.join(path, dataset_info.NAME)
        if files.is_file(files.join(path, "state.json")) or not files.is_file(info):
            return [_named(_folder(path, media, follow_outside), path, names)]
        path = info
    elif any(character in path for character in WILD) and not files.is_file(path):
        return [_named(_pattern(path, media, follow_outside), path, names)]
    elif not files.is_file(path):
        raise UserError(f"no file {path}: give a dataset_info.json or a data file ({', '.join(SUFFIXES)})")
    entries = dataset_info.read_info(path)
    if entries is None:
        source = _source(_stem(path), [path], _parent(path), media, follow_outside)
        return [_named(source, path, names)]
    if not names:
        has = dataset_info.listed(entries)
        raise UserError(f"{path}: say which datasets, as config.data.mixture=NAME:SHARE,...; it has {has}")
    return [_entry(path, name, entries, media, follow_outside) for name in names]


def _entry(info: str, name: str, entries: Mapping[str, Any], media: str, follow_outside: bool) -> Source:
    entry = dataset_info.read_entry(info, name, entries)
    media = entry.media or media
    return _source(name, entry.files, _parent(info), media, follow_outside, entry.form, entry.num_samples)


def _source(
    name: str,
    found: Sequence[str],
    folder: str,
    media: str,
    follow_outside: bool,
    form: Format | None = None,
    num_samples: int = 0,
) -> Source:
    """Returns the source of files that lie under ``folder``, from which origins count."""
    if form is None:
        form = _recognised(found)
    pictures = Pictures(media or folder, folder, follow_outside)
    choice = containers.sample(found, num_samples) if num_samples else None
    if choice is not None and not choice.total:
        raise UserError(f"dataset '{name}' holds no records, but num_samples asks for {num_samples}")
    entry = {
        "format": type(form).__name__,
        **dataclasses.asdict(form),  # type: ignore[call-overload]  # each format is a dataclass
        "media_dir": containers.relative(media, folder) if media and not files.is_remote(media) else media,
        "follow_outside": follow_outside,
        "num_samples": num_samples,
    }
    return Source(
        name,
        tuple(found),
        json.dumps(entry, sort_keys=True, separators=(",", ":")),
        functools.partial(containers.list_units, tuple(found)),
        functools.partial(containers.read, folder=folder, form=form, pictures=pictures, choice=choice),
    )


def _recognised(found: Sequence[str]) -> Format:
    """Returns the format of files, which their first record tells that can be read."""
    for file in found:
        for (origin, record), _ in zip(containers.head(file), range(HEAD), strict=False):
            if isinstance(record, LeftOut):
                continue
            for family in (conversations, interleaved, alpaca):
                form = family.recognise(record)
                if form is not None:
                    return form
            raise UserError(
                f"{origin}: no format known has the keys {', '.join(record)}: give messages, conversations, or text, "
                f"or describe the file in a dataset_info.json"
            )
    raise UserError(f"{found[0]} holds no records" + (" that can be read" if files.version(found[0]).size else ""))


def _folder(folder: str, media: str, follow_outside: bool) -> Source:
    """Returns the source of all data files in a folder, which must be of one kind."""
    inside = [file for file in files.listed(folder) if containers.suffix(file) and files.is_file(file)]
    found = [file for file in inside if file.rpartition("/")[2].lower() not in NOTES]
    kinds = sorted({containers.suffix(file) for file in found})
    if not kinds:
        raise UserError(f"{folder} holds no data: neither a dataset_info.json nor a {', '.join(SUFFIXES)} file")
    if len({id(containers.CONTAINERS[kind]) for kind in kinds}) > 1:
        raise UserError(f"{folder} holds {', '.join(kinds)} files: say which, as {files.join(folder, '*' + kinds[0])}")
    return _source(folder.rstrip("/").rpartition("/")[2], found, folder, media, follow_outside)


def _pattern(pattern: str, media: str, follow_outside: bool) -> Source:
    found = files.matched(pattern)
    if not found:
        raise UserError(f"no file matches {pattern}")
    for file in found:
        if not containers.suffix(file):
            raise UserError(f"{pattern}: {file} is not supported yet: the file types are {', '.join(SUFFIXES)}")
    fixed = pattern[: min(pattern.index(c) for c in WILD if c in pattern)]
    folder, _, start = fixed.rpartition("/")
    return _source(start.rstrip("-_.") or folder.rpartition("/")[2], found, folder, media, follow_outside)


def _splits(folder: str, listing: str, names: Sequence[str]) -> list[str]:
    """Returns the folders of the named splits of what datasets' ``DatasetDict.save_to_disk`` wrote."""
    with files.open_binary(listing) as opened:
        splits = json.loads(opened.read()).get("splits", [])
    if not names and len(splits) != 1:
        raise UserError(
            f"{folder}: say which splits, as config.data.mixture=NAME:SHARE,...; it has {', '.join(splits)}"
        )
    for name in names:
        if name not in splits:
            raise UserError(f"{folder} has no split '{name}'{nearest(name, splits)}; it has {', '.join(splits)}")
    return [files.join(folder, name) for name in (names or splits)]


def _named(source: Source, path: str, names: Sequence[str]) -> Source:
    for other in names:
        if other != source.name:
            kind = "one data file" if len(source.files) == 1 else "one data source"
            raise UserError(f"{path} is {kind}, named '{source.name}' in a mixture: it has no '{other}'")
    return source


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _stem(path: str) -> str:
    base = path.rpartition("/")[2]
    return base[: len(base) - len(containers.suffix(path))] or base
