"""The entry to data: finds out what a path is (a description, a file, a folder, a pattern), and opens its sources."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.data import files, splits
from jaxmm.data.documents import Source
from jaxmm.data.readers import containers, dataset_info, pairs, preferences
from jaxmm.data.readers.containers import SUFFIXES, Container, Format
from jaxmm.data.readers.pictures import Pictures
from jaxmm.data.readers.recognise import CLIPS_FORMAT, recognise, settings
from jaxmm.data.readers.records import HeldOut, read
from jaxmm.data.reading import Reading
from jaxmm.data.text import boxes
from jaxmm.errors import UserError, nearest
from jaxmm.json_text import parse_json

WILD = "*?["
# Files beside the data that are no data: the notes of ``datasets``, and descriptions of a folder.
NOTES = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json", "requirements.txt", "readme.txt")
_BAD_NAME = re.compile(r"[\x00-\x1f\x7f/\\]|^\.{1,2}$|^$")


def read_sources(path: str, names: Sequence[str], reading: Reading = Reading()) -> list[Source]:  # noqa: B008
    """Opens data sources, reading no more of them than is needed to recognise their format.

    Args:
      path: local or a URL. Either a LLaMA-Factory ``dataset_info.json`` or the folder that holds one: the names are its
        entries. Or a folder that ``datasets`` saved with splits: the names are the splits. Or a data file, a folder of
        data files of one kind, or a pattern such as ``shards/*.tar``: a single source whose format its first record
        tells. It is named after the file without its suffix, after the folder, or after what precedes the pattern's
        first wildcard.
      names: of the sources wanted, in order.
      reading: the keys of ``config.data`` that readers know.

    Raises:
      UserError: for a file, an entry or a column that is not there or not supported. A record that makes no sense
        raises it later, from ``Source.read``; most often its images and placeholders differ in number.
    """
    path = files.absolute(path)
    if files.is_folder(path):
        if files.is_file(listing := files.join(path, "dataset_dict.json")):
            split_folders = _of_dict(path, listing, names, reading)
            return [_folder(p, reading, told, whole=True) for p, told in split_folders]
        info = files.join(path, dataset_info.NAME)
        if files.is_file(files.join(path, "state.json")) or not files.is_file(info):
            return [_named(_folder(path, reading), path, names)]
        path = info
    elif any(character in path for character in WILD) and not files.is_file(path):
        return [_named(_pattern(path, reading), path, names)]
    elif not files.is_file(path):
        raise UserError(f"no file {path}: give a dataset_info.json or a data file ({', '.join(SUFFIXES)})")
    entries = dataset_info.read_info(path)
    if entries is None:
        return [_named(_file(path, reading), path, names)]
    if not names:
        has = dataset_info.listed(entries)
        raise UserError(f"{path}: say which datasets, as config.data.mixture=NAME:SHARE,...; it has {has}")
    if reading.columns and not reading.evaluation:
        raise UserError(f"config.data.columns is for data without a description: name the columns in {path}")
    return [_entry(path, name, entries, reading) for name in names]


def _entry(info: str, name: str, entries: Mapping[str, Any], reading: Reading) -> Source:
    entry = dataset_info.read_entry(info, name, entries, reading)
    reading = dataclasses.replace(reading, media_dir=entry.media or reading.media_dir)
    return _source(name, entry.files, _parent(info), reading, entry.form, entry.num_samples, told=entry.told)


def _source(
    name: str,
    paths: Sequence[str],
    folder: str,
    reading: Reading,
    form: Format | None = None,
    num_samples: int = 0,
    kind: Container | None = None,
    told: str = "",
) -> Source:
    """Returns the source of files under ``folder``; the paths in origins are relative to it.

    Args:
      kind: the container of its files, where their suffixes do not tell it.
    """
    if _BAD_NAME.search(name):
        raise UserError(f"a data source cannot be called {name!r:.60}: files are named after it")
    if form is None:
        form = _recognised(paths, reading, kind)
    media = files.absolute(reading.media_dir) if reading.media_dir else ""
    pictures = Pictures(
        media or folder,
        folder,
        reading.follow_outside,
        reading.allow_urls,
        reading.hosts(),
        reading.placeholder,
        (reading.video_placeholder, reading.audio_placeholder),
        bare_is_text=reading.bare_placeholder == "text",
        has_boxes=bool(reading.boxes),
    )
    choice = containers.sample(paths, num_samples, kind) if num_samples else None
    if choice is not None and not choice.total:
        raise UserError(f"dataset '{name}' holds no records, but num_samples asks for {num_samples}")
    held_out = HeldOut(reading.val_size, reading.held_out)
    kinds = [kind] if kind else {id(c): c for c in map(containers.container, _of_each_suffix(paths))}.values()
    entry = {
        "format": type(getattr(form, "first", form)).__name__,
        "versions": [form.version, *sorted(one.version for one in kinds)],
        **settings(form),
        "media_dir": containers.relative(media, folder) if media and not files.is_remote(media) else media,
        "reading": [reading.follow_outside, reading.allow_urls, reading.url_hosts, reading.placeholder],
        "errors": [reading.on_error, reading.drop_image, reading.bare_placeholder],
        "held_out": held_out if held_out.part else [],
        "num_samples": num_samples,
    }
    if pictures.of_clips != Pictures.of_clips:
        entry["placeholders"] = pictures.of_clips
    if reading.boxes:  # only then, so that data prepared without boxes keeps its key
        entry["boxes"] = boxes.settings(reading.boxes, reading.image)
    if reading.preferences:  # the same
        entry["preferences"] = [reading.preferences, preferences.FORMAT, CLIPS_FORMAT]
    return Source(
        name,
        tuple(paths),
        json.dumps(entry, sort_keys=True, separators=(",", ":")),
        functools.partial(containers.list_units, tuple(paths), kind=kind),
        functools.partial(
            read,
            folder=folder,
            form=form,
            pictures=pictures,
            choice=choice,
            held_out=held_out,
            skip_errors=reading.on_error == "skip",
            kind=kind,
        ),
        told=(told,) if told else (),
        max_skipped=reading.max_skipped,
        drop_image=reading.drop_image,
        skip_errors=reading.on_error == "skip",
        boxes=reading.boxes,
        image=reading.image,
    )


def _of_each_suffix(paths: Sequence[str]) -> list[str]:
    """Returns one file of each suffix, so that only one of a thousand shards is opened."""
    return list({containers.suffix(file): file for file in reversed(paths)}.values())


def _recognised(paths: Sequence[str], reading: Reading, kind: Container | None) -> Format:
    """Returns the format of files; the first record that can be read tells it."""
    columns = reading.named()
    for file in paths:
        if reading.evaluation and columns:
            heads = [record for _, (_, record) in zip(range(10), containers.head(file, kind), strict=False)]
            if not any(set(filter(None, columns.values())) & set(r) for r in heads if isinstance(r, Mapping)):
                columns = {}  # the columns are the training data's: these files have none of them
        form = recognise(containers.head(file, kind), columns, file, reading.preferences)
        if form is not None:
            return form
    raise UserError(f"{paths[0]} holds no records" + (" that can be read" if files.version(paths[0]).size else ""))


def _file(path: str, reading: Reading) -> Source:
    if reading.split:
        raise UserError(f"config.data.split chooses among the files of a folder: {path} is one file")
    if pairs.is_text(path) and not path.lower().endswith(".json") and (beside := pairs.beside(path)):
        raise UserError(
            f"{beside[0]} lies beside {path} as if that were its text: give their folder, or move one of them elsewhere"
        )
    return _source(_stem(path), [path], _parent(path), reading)


def _folder(folder: str, reading: Reading, told: str = "", whole: bool = False) -> Source:
    """Returns the source of a folder's files, which must be of one kind; one split of them, unless ``whole``."""
    name = folder.rstrip("/").rpartition("/")[2]
    inside = [file for file in files.listed(folder) if _is_data(file)]
    if paths := pairs.found(inside):
        return _source(name, paths, folder, reading, kind=containers.PAIRS, told=told)
    paths = [file for file in inside if containers.suffix(file)]
    if not paths:
        below, told, whole = _below(folder, reading)
        return dataclasses.replace(_folder(below, reading, told, whole), name=name)
    paths, line = (paths, "") if whole else splits.chosen(folder, paths, reading.split, reading.evaluation)
    kinds = sorted({containers.suffix(file) for file in paths})
    if len({id(containers.CONTAINERS[kind]) for kind in kinds}) > 1:
        raise UserError(f"{folder} holds {', '.join(kinds)} files: say which, as {files.join(folder, '*' + kinds[0])}")
    return _source(name, paths, folder, reading, told=line or told)


def _is_data(file: str) -> bool:
    base = file.rpartition("/")[2].lower()
    return not base.startswith(".") and base not in NOTES and files.is_file(file)


def _below(folder: str, reading: Reading) -> tuple[str, str, bool]:
    """Looks for data below a folder that has no data files itself.

    Returns:
      the folder of the wanted split (train/, val/) or else data/, a line about that choice, and whether all files in
      it are of the split.
    """
    inside = [entry for entry in files.listed(folder) if files.is_folder(entry)]
    split = [entry for entry in inside if splits.of(entry)]
    if split:
        chosen, line = splits.chosen(folder, split, reading.split, reading.evaluation)
        if len(chosen) > 1:
            raise UserError(f"{folder} holds the folders {', '.join(chosen)}: give one of them")
        return chosen[0], line.replace(" files)", " folders)"), True
    data = files.join(folder, "data")
    if data in inside:
        return data, f"{folder}: its folder data is read", False
    raise UserError(f"{folder} holds no data: neither a dataset_info.json nor a {', '.join(SUFFIXES)} file")


def _pattern(pattern: str, reading: Reading) -> Source:
    matching = files.matched(pattern)
    if not matching:
        raise UserError(f"no file matches {pattern}")
    for file in matching:
        if not containers.suffix(file):
            raise UserError(f"{pattern}: {file} is not supported yet: the file types are {', '.join(SUFFIXES)}")
    told = ""
    if reading.split:
        matching, told = splits.chosen(pattern, matching, reading.split, reading.evaluation)
    elif len(mixed := sorted(filter(None, set(map(splits.of, matching))))) > 1:
        told = f"{pattern} matches files of {', '.join(mixed)}, and all are read: config.data.split chooses one"
    fixed = pattern[: min(pattern.index(c) for c in WILD if c in pattern)]
    folder, _, start = fixed.rpartition("/")
    name = start.rstrip("-_.") or folder.rpartition("/")[2]
    if all(map(pairs.is_text, matching)) and all(map(pairs.beside, matching)):
        return _source(name, matching, folder, reading, kind=containers.PAIRS, told=told)
    return _source(name, matching, folder, reading, told=told)


def _of_dict(folder: str, listing: str, names: Sequence[str], reading: Reading) -> list[tuple[str, str]]:
    """Returns (folder, line for people) of each named split that datasets' ``DatasetDict.save_to_disk`` wrote."""
    try:
        with files.open_binary(listing) as opened:
            known = parse_json(opened.read()).get("splits", [])
    except (ValueError, AttributeError) as error:
        raise UserError(f"{listing} is not what datasets writes: {error}") from error
    if not isinstance(known, list) or not all(isinstance(s, str) and not _BAD_NAME.search(s) for s in known):
        raise UserError(f"{listing} is not what datasets writes: its splits must be names")
    for name in names:
        if name not in known:
            raise UserError(f"{folder} has no split '{name}'{nearest(name, known)}; it has {', '.join(known)}")
    if names:
        return [(files.join(folder, name), "") for name in names]
    chosen, told = splits.chosen(folder, known, reading.split, reading.evaluation)
    if len(chosen) != 1:
        has = ", ".join(known)
        raise UserError(f"{folder}: say which splits, as config.data.mixture=NAME:SHARE,...; it has {has}")
    return [(files.join(folder, chosen[0]), told.replace(" files)", " splits)"))]


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
