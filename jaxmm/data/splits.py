"""Which of a folder's files are for training, and which are held out, by the names of files or folders."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxmm.errors import UserError, nearest

# Each split as ``datasets`` names it, with all words that stand for it.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORD = re.compile(r"[a-z]+")


def of(name: str) -> str:
    """Returns the split that a file's or folder's name tells, or ''."""
    stem = name.rpartition("/")[2].lower()
    words = _WORD.findall(stem)
    matches = [split for split, names in SPLITS.items() if any(word in names for word in words)]
    return matches[0] if len(matches) == 1 else ""


def wanted(asked: str) -> str:
    """Returns the split that a word asks for: val is validation; any other word is itself."""
    return next((split for split, names in SPLITS.items() if asked.lower() in names), asked)


def chosen(where: str, names: Sequence[str], asked: str, evaluation: bool) -> tuple[list[str], str]:
    """Chooses files or folders.

    Args:
      where: the path, for messages.
      names: of files or folders.
      asked: a split. '' is train, or for an evaluation the first there is of validation, test and train.
      evaluation: whether the data is for an evaluation.

    Returns:
      those chosen, in order, and a line for people about the choice; '' if nothing is split.

    Raises:
      UserError: if nothing belongs to the split.
    """
    by_split: dict[str, list[str]] = {}
    for name in names:
        by_split.setdefault(of(name), []).append(name)
    if asked:
        begins = tuple(f"{asked.lower()}{mark}" for mark in "-._")
        named = [name for name in names if name.rpartition("/")[2].lower().startswith(begins)]
        kept = by_split.get(wanted(asked)) or named or (by_split.get("") if wanted(asked) == "train" else None)
        if not kept:
            known = sorted(filter(None, by_split))
            has = f"it has {', '.join(known)}{nearest(asked, known)}" if known else "no name there says a split"
            raise UserError(f"{where} has no split '{asked}': {has}")
    elif set(by_split) <= {""} or set(by_split) == {"train"}:
        return list(names), ""
    elif evaluation:
        asked = next((split for split in ("validation", "test") if split in by_split), "train")
        kept = by_split.get(asked, by_split.get("", []))
    else:
        asked = "train"
        # A name that tells no split counts as train, beside names that are held out.
        kept = [name for name in names if of(name) in ("train", "")]
        if len(by_split) == 1:
            return list(names), f"{where} has no train split: its {', '.join(by_split)} is read"
        if not kept:
            raise UserError(
                f"{where} holds {', '.join(sorted(by_split))} and no train: say which, as "
                f"config.data.split={sorted(by_split)[0]}"
            )
    left = [name.rpartition("/")[2] for name in names if name not in kept]
    if not left:
        return list(kept), ""
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return list(kept), (
        f"{where}: its split {asked} is read ({len(kept)} of {len(names)} files), not {', '.join(left[:3])}{more}; "
        f"config.data.split chooses another"
    )
