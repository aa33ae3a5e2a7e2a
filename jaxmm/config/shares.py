"""Numbers by the name of a source, as keys of the config have them: ``name:number,name:number``."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from jaxmm.errors import UserError, nearest

MOST = 1e12  # of a share or a number: sums stay finite


def _check_name(name: str, entry: str, before: Collection[str], key: str) -> None:
    if not name:
        raise UserError(f"{key}: '{entry}' names no source; write name:number,name:number")
    if name in before:
        raise UserError(f"{key} names '{name}' twice: give it one number")


def parse_mixture(text: str, key: str = "config.data.mixture") -> dict[str, float]:
    """Reads ``name:share,name:share``; a name without a share has 0, to be set from its size.

    Raises:
      UserError: for a share that is no positive number, or where only some names have one.
    """
    shares: dict[str, float] = {}
    for entry in filter(None, (e.strip() for e in text.split(","))):
        name, colon, share = entry.rpartition(":") if ":" in entry else (entry, "", "")
        _check_name(name, entry, shares, key)
        try:
            shares[name] = float(share) if colon else 0.0
        except ValueError:
            shares[name] = -1.0
        if colon and not 0 < shares[name] <= MOST:
            raise UserError(f"{key}: '{entry}' has no positive share; write name:share,name:share")
    if shares and 0 < sum(s > 0 for s in shares.values()) < len(shares):
        raise UserError(f"{key} '{text}': give every name a share, or none of them")
    return shares


def parse_schedule(text: str) -> list[tuple[int, dict[str, float]]]:
    """Reads shares that change: ``a:0.9,b:0.1 @1000 a:0.5,b:0.5`` has others from step 1000 on.

    Returns:
      (step, shares by name), the first of step 0; each as ``parse_mixture`` gives it.
    """
    first, *rest = re.split(r"\s*@\s*(\d+)\s+", text.strip())
    stages = [(0, parse_mixture(first))]
    for step, shares in zip(rest[::2], rest[1::2], strict=True):
        stages.append((int(step), parse_mixture(shares)))
        if stages[-1][0] <= stages[-2][0] or not stages[-1][1] or not stages[0][1]:
            raise UserError(
                f"config.data.mixture '{text}': shares change at steps above 0, in order, and each time name sources; "
                f"write name:share,name:share @STEP name:share,name:share"
            )
    if "@" in "".join([first, *rest[1::2]]):
        raise UserError(f"config.data.mixture '{text}': write a change of shares as ' @STEP name:share,name:share'")
    return stages


def parse_numbers(text: str, key: str, names: Sequence[str] | None = None, least: float = 0.0) -> dict[str, float]:
    """Reads ``name:number,name:number`` for some of the sources, whose ``names`` may not be known yet.

    Raises:
      UserError: for a name that is no source, or a number that is not finite and above ``least``.
    """
    numbers: dict[str, float] = {}
    for entry in filter(None, (e.strip() for e in text.split(","))):
        name, _, number = entry.rpartition(":")
        _check_name(name, entry, numbers, key)
        try:
            numbers[name] = float(number)
        except ValueError:
            numbers[name] = math.nan
        if not least < numbers[name] <= MOST:
            raise UserError(f"{key}: '{entry}' has no number in range; write name:number,name:number")
        if names is not None and name not in names:
            raise UserError(f"{key} '{text}': no source '{name}': there are {', '.join(names)}{nearest(name, names)}")
    return numbers


def parse_patterns(text: str, key: str, parts: Sequence[str]) -> tuple[str, ...]:
    """Reads ``part,pattern``: parts of the model and patterns of paths in them, as ``decoder.blocks.mlp``, ``*.bias``.

    Raises:
      UserError: for a part that is none of ``parts``.
    """
    listed = tuple(filter(None, (name.strip() for name in text.split(","))))
    for pattern in listed:
        if not re.fullmatch(r"[\w.*?]+", pattern):
            raise UserError(f"{key}: '{pattern}' is no part or path: write decoder, decoder.blocks.mlp or *.bias")
        part = pattern.split(".")[0]
        if not re.search(r"[*?]", part):
            parse_names(part, key, parts, "part")
    return listed


def parse_rates(text: str, key: str, parts: Sequence[str]) -> dict[str, float]:
    """Reads ``pattern:number,pattern:number``, the patterns as ``parse_patterns`` reads them.

    Raises:
      UserError: for a part that is none of ``parts``, or a number that is not finite and 0 or above.
    """
    rates = parse_numbers(text, key, least=-1e-9)
    parse_patterns(",".join(rates), key, parts)
    return rates


def parse_names(text: str, key: str, names: Sequence[str], what: str) -> tuple[str, ...]:
    """Reads ``name,name``.

    Raises:
      UserError: for a name that is none of ``names``; ``what``: they are names of.
    """
    listed = tuple(filter(None, (name.strip() for name in text.split(","))))
    for name in listed:
        if name not in names:
            raise UserError(f"{key}: no {what} '{name}': the {what}s are {', '.join(names)}{nearest(name, names)}")
    return listed
