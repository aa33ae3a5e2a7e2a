"""LLaMA-Factory's dataset_info.json: what each entry says about files, columns and tags, with its defaults."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxmm.data import files, splits
from jaxmm.data.readers import arrays, weights
from jaxmm.data.readers.alpaca import Alpaca, Plain
from jaxmm.data.readers.columns import FEATURES, NONE, TOKENS
from jaxmm.data.readers.containers import SUFFIXES, Format, suffix
from jaxmm.data.readers.conversations import CALL, Conversation
from jaxmm.data.readers.judged import Judged
from jaxmm.data.readers.preferences import Compared
from jaxmm.data.reading import OBJECTIVES, Reading
from jaxmm.errors import UserError, nearest
from jaxmm.json_text import parse_json

NAME = "dataset_info.json"
HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
MAX_BYTES = 1 << 24  # records may be large, a list of datasets is not

# LLaMA-Factory's names of the columns that an entry maps, with its defaults; '' is "none".
CONVERSATION = {"messages": "conversations", "system": "", "tools": "", "images": "", "videos": "", "audios": ""}
COLUMNS = {
    "sharegpt": CONVERSATION,
    "openai": {**CONVERSATION, "messages": "messages"},
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "",
        "system": "",
        "tools": "",
        "images": "",
        "videos": "",
        "audios": "",
    },
}
MEDIA = ("images", "videos", "audios")
PREFERENCE = {"chosen": "pairs", "rejected": "pairs", "kto_tag": "judged"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
# LLaMA-Factory has no defaults of its own for these; without tags it finds nothing in such files.
OPENAI_TAGS = {
    **TAGS,
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
}
# In LLaMA-Factory these are settings of a whole run; here a dataset may set them too.
LEARNT = {"mask_history": weights.LAST, "train_on_prompt": weights.PROMPT}
# The types of an entry's values; num_samples is checked where it is read.
TYPES: dict[str, type] = {
    **dict.fromkeys(("file_name", "formatting", "folder", "subset", "split", "media_dir", "revision", *HUBS), str),
    "columns": dict,
    "tags": dict,
    **dict.fromkeys((*LEARNT, "ranking"), bool),
}
KEYS = (
    "file_name",
    "formatting",
    "columns",
    "tags",
    "ranking",
    "num_samples",
    "folder",
    "subset",
    "split",
    "media_dir",
    "revision",
    *LEARNT,
    "weight",
    *HUBS,
)


class Entry(NamedTuple):
    """A dataset as described: its files, in order, and how their records are read.

    Attributes:
      media: folder of the images and clips, absolute; '' if the entry says nothing.
      num_samples: how many records to choose; 0 for all.
      told: a line on what is not read; '' if everything is.
    """

    files: tuple[str, ...]
    form: Format
    media: str
    num_samples: int
    told: str = ""


def read_info(path: str) -> dict[str, dict[str, Any]] | None:
    """Reads a dataset_info.json, whatever its name. Returns None if the file holds records."""
    is_named = path.rpartition("/")[2] == NAME
    if not is_named and (not path.endswith(".json") or files.version(path).size > MAX_BYTES):
        return None
    if not is_named and arrays.is_array(path):
        return None
    with files.open_binary(path) as opened:
        try:
            entries = parse_json(opened.read().decode("utf-8-sig", "surrogateescape"))
        except ValueError as error:
            if is_named:
                raise UserError(f"{path} is not JSON: {error}") from error
            return None
    places = {"file_name", *HUBS}
    is_info = isinstance(entries, dict) and all(isinstance(e, dict) and places & e.keys() for e in entries.values())
    if is_named and not is_info:
        raise UserError(f"{path}: every entry must be an object with a file_name or a hub's url")
    return entries if is_info else None


def read_entry(info: str, name: str, entries: Mapping[str, dict[str, Any]], reading: Reading) -> Entry:
    """Returns what an entry describes.

    Raises:
      UserError: for an entry, a file, a column or a tag that does not exist, or for what is not supported.
    """
    if name not in entries:
        raise UserError(f"{info} has no dataset '{name}'{nearest(name, entries)}; it has {listed(entries)}")
    entry = entries[name]
    where = f"{info}: dataset '{name}'"
    for key in entry:  # other keys are allowed, but a misspelt one would change what is read
        close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8) if key not in KEYS else []
        if close:
            raise UserError(f"{where}: '{key}' is no key of an entry; did you mean '{close[0]}'?")
    for name_of, kind in TYPES.items():
        if not isinstance(entry.get(name_of), kind | None):
            needed = {dict: "an object", bool: "true or false"}.get(kind, "text")
            raise UserError(f"{where}: {name_of} must be {needed}, not {entry[name_of]!r:.40}")
    for key in ("columns", "tags"):
        for mapped, value in (entry.get(key) or {}).items():
            if not isinstance(value, str | None):
                raise UserError(f"{where}: '{mapped}' of its {key} must be a name, not {value!r:.40}")
    if not entry.get("file_name"):
        place = next((hub for hub in HUBS if entry.get(hub)), "")
        if not place:
            raise UserError(f"{where} names no file: give its file_name")
        raise UserError(f"{where} has a {place}, not supported yet: download it and give its file_name")
    form = _form(where, entry, reading.preferences)
    form = _unweighed(where, entry, form) if reading.preferences else _learnt(where, entry, form)
    root = info.rpartition("/")[0]
    wanted = entry.get("num_samples") or 0
    if type(wanted) is not int or wanted < 0:
        raise UserError(f"{where}: num_samples must be a positive number, not {wanted!r:.40}")
    media = entry.get("media_dir") or ""
    media = _inside(where, "media_dir", root, media, reading) if media else ""
    paths, told = _files(where, root, entry, reading)
    if reading.preferences and entry.get("train_on_prompt"):
        told = "; ".join(filter(None, (told, f"{where}: train_on_prompt does not count: its prompts are not learnt")))
    return Entry(paths, form, media, wanted, told)


def _inside(where: str, key: str, root: str, value: str, reading: Reading) -> str:
    """Returns a path that an entry gives. Only the user may choose another place; a description must not.

    Raises:
      UserError: if it leads out of the folder of the dataset_info.json and the config's media_dir.
    """
    path = files.join(root, value)
    allowed = [root, *([files.absolute(reading.media_dir)] if reading.media_dir else [])]
    # A link to the data itself is the user's, or a hub's cache's. A link to pictures would open everything behind it.
    is_resolved = key == "media_dir" and not files.is_remote(path)
    real, *bases = (os.path.realpath(one) if is_resolved else one for one in (path, *allowed))
    for base in bases:
        if real == base or real.startswith(base.rstrip("/") + "/"):
            return path
    if not reading.follow_outside:
        raise UserError(
            f"{where}: its {key} {value!r:.60} leads out of {root}: if you want that, allow it with "
            f"config.data.media_dir={path} or config.data.follow_outside=True"
        )
    return path


def listed(entries: Mapping[str, Any]) -> str:
    """Names the entries, those with a file first, in at most one line (20 names)."""
    names = sorted(entries, key=lambda name: "file_name" not in entries[name])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _files(where: str, root: str, entry: Mapping[str, Any], reading: Reading) -> tuple[tuple[str, ...], str]:
    """Returns the files of an entry: one, or those of a folder; ``folder``, ``subset`` and ``split`` choose among them.

    Also returns a line on what is not chosen, where the entry does not say so itself.
    """
    place, told = _inside(where, "file_name", root, entry["file_name"], reading), ""
    parts = [entry[key] for key in ("folder", "subset") if entry.get(key)]
    if files.is_file(place):
        if parts or entry.get("split", "train") != "train":
            raise UserError(f"{where}: {place} is one file: folder, subset and split choose among a folder's files")
        paths = [place]
    else:
        for part in parts:
            place = _inside(where, part, root, files.join(place, part), reading)
        if not files.is_folder(place):
            raise UserError(f"{where} names the file {place}, which does not exist")
        paths, told = _split(where, place, entry.get("split") or "", reading)
    for file in paths:
        if not suffix(file):
            raise UserError(f"{where}: {file} is not supported yet: the file types are {', '.join(SUFFIXES)}")
    return tuple(paths), told


def _split(where: str, folder: str, split: str, reading: Reading) -> tuple[list[str], str]:
    """Returns a folder's files: those of a split by name (``test-00000.parquet``) or in a folder of its name."""
    inside = files.listed(folder)
    names = {file: file.rpartition("/")[2] for file in inside}
    if split:
        chosen = [file for file in inside if names[file].startswith((f"{split}-", f"{split}.", f"{split}_"))]
        if not chosen and files.is_folder(files.join(folder, split)):
            return _split(where, files.join(folder, split), "", dataclasses.replace(reading, split=""))
        if chosen or split != "train":  # files that are not split at all are "train", as in LLaMA-Factory
            if not chosen:
                raise UserError(f"{where} asks for the split '{split}', but no file of {folder} is named so")
            inside = chosen
    is_saved = f"{folder.rstrip('/')}/state.json" in inside  # by datasets' save_to_disk
    paths = [f for f in inside if not names[f].startswith(".") and (not is_saved or names[f].endswith(".arrow"))]
    paths = [file for file in paths if files.is_file(file)]
    if not paths:
        raise UserError(f"{where} names the folder {folder}, which has no files")
    return (paths, "") if split or is_saved else splits.chosen(where, paths, reading.split, reading.evaluation)


def _form(where: str, entry: Mapping[str, Any], preferences: str) -> Format:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in COLUMNS:
        known = f"{', '.join(COLUMNS)}{nearest(str(formatting), COLUMNS)}"
        raise UserError(f"{where}: formatting '{formatting}' is not supported: those that are: {known}")
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    defaults = COLUMNS[formatting]
    _known(where, columns, (*defaults, *PREFERENCE))
    _known(where, tags, tuple(TAGS))
    _check_preferences(where, entry, preferences)
    if formatting == "alpaca" and columns:  # as in LLaMA-Factory: then a column that is not mapped does not exist
        defaults = dict.fromkeys(defaults, "")
    columns = {key: columns.get(key) or default for key, default in defaults.items()}
    given = entry.get("columns") or {}
    media: dict[str, Any] = {
        key: (NONE,) * (given.get(key) == "") + (columns[key],) * bool(columns[key]) for key in MEDIA
    }
    # Ready-made media, for which LLaMA-Factory has no name, are found under our names.
    media["images"] += (FEATURES, TOKENS)
    if formatting == "alpaca":
        return _preferred(where, preferences, given, _alpaca(where, columns, media, preferences == "pairs"))
    defaults = OPENAI_TAGS if formatting == "openai" else TAGS
    tags = {key: tags.get(key) or default for key, default in defaults.items()}
    roles = {
        tags["function_tag"]: CALL,  # the model writes calls,
        tags["observation_tag"]: "tool",  # and reads their results
        tags["system_tag"]: "system",
        tags["assistant_tag"]: "assistant",
        tags["user_tag"]: "user",
    }
    roles.setdefault("document", "document")
    form = Conversation(
        columns["messages"],
        tags["role_tag"],
        tags["content_tag"],
        roles,
        columns["system"],
        columns["tools"],
        **media,
    )
    return _preferred(where, preferences, given, form)


def _check_preferences(where: str, entry: Mapping[str, Any], wanted: str) -> None:
    """Raises UserError if an entry has no preferences of the kind wanted, or some that are not."""
    columns = entry.get("columns") or {}
    has = {
        kind: [f"the column '{c}'" for c, own in PREFERENCE.items() if own == kind and columns.get(c)]
        for kind in OBJECTIVES
    }
    has["pairs"] += ["ranking"] * bool(entry.get("ranking"))
    others = [(names, OBJECTIVES[kind]) for kind, names in has.items() if names]
    if wanted and not has[wanted]:
        lacking = "labels" if wanted == "judged" else "pairs of answers"
        needed = "the column kto_tag" if wanted == "judged" else '"ranking": true, and the columns chosen and rejected'
        reads = f"; {others[0][1]} reads what it has: {', '.join(others[0][0])}" if others else ""
        raise UserError(f"{where} has no {lacking}: {OBJECTIVES[wanted]} needs {needed}{reads}")
    if not wanted and others:
        names, objective = others[0]
        raise UserError(f"{where} asks for {', '.join(names)}: set {objective} to learn from preferences")
    if wanted == "pairs" and not (columns.get("chosen") and columns.get("rejected")):
        raise UserError(f"{where}: its columns must name both answers of a pair, chosen and rejected")


def _preferred(where: str, wanted: str, columns: Mapping[str, str], form: Conversation | Alpaca | Plain) -> Format:
    """Returns a format of records with the preferences wanted."""
    if not wanted:
        return form
    if isinstance(form, Plain):
        raise UserError(f"{where}: a kto_tag needs a response column: it judges an answer")
    return (
        Compared(form, columns["chosen"], columns["rejected"])
        if wanted == "pairs"
        else Judged(form, columns["kto_tag"])
    )


def _unweighed(where: str, entry: Mapping[str, Any], form: Format) -> Format:
    """Returns the format of preferences, whose answers alone are learnt, whatever the entry says of turns."""
    if weights.of_message(where, {"weight": entry.get("weight")}) != 1:
        raise UserError(f"{where}: pairs are not weighed, nor judged answers: leave its weight out")
    return form


def _learnt(where: str, entry: Mapping[str, Any], form: Format) -> Format:
    """Returns a format with the entry's settings for what is learnt."""
    turns = [turns for key, turns in LEARNT.items() if entry.get(key)]
    if len(turns) > 1:
        raise UserError(f"{where}: {' and '.join(LEARNT)} exclude each other: give one of them")
    weight = weights.of_message(where, {"weight": entry.get("weight")})
    if not turns and weight == 1:
        return form
    if isinstance(form, Plain):
        raise UserError(f"{where}: {', '.join(LEARNT)} and weight are for conversations: its records are texts")
    return dataclasses.replace(form, learnt=weights.Learnt("".join(turns), weight))  # type: ignore[type-var]


def _alpaca(where: str, columns: Mapping[str, str], media: Mapping[str, Any], has_pairs: bool) -> Alpaca | Plain:
    if not columns["prompt"]:
        raise UserError(f"{where}: columns must say which one is the prompt")
    if columns["response"] or has_pairs:
        return Alpaca(
            columns["prompt"],
            columns["query"],
            "" if has_pairs else columns["response"],
            columns["history"],
            columns["system"],
            columns["tools"],
            **media,
        )
    for name in ("history", "system", "tools"):
        if columns[name]:
            raise UserError(f"{where}: a {name} column needs a response column")
    return Plain(tuple(filter(None, (columns["prompt"], columns["query"]))), **media)


def _known(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{where}: '{key}' is none of {', '.join(known)}{nearest(key, known)}")
