"""Damage drawn from a seed: to bytes, as disks and networks do it, and to values, as people and programs do it."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

# What a value may be turned into, of any kind.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**9, 10**15, -(10**9), 0.5, -0.5, 1e308, float("nan"), float("inf"), "", " ", "x",
    "../../x", "/etc/passwd", "\0", "\x1b[31mred\x1b[0m", "%s{}", "x" * 100_000, "\ud800", "<image>", "<|im_end|>",
    [], {}, [[]], {"": ""}, [None], list(range(1000)),
)  # fmt: skip


def damaged(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """What was done, and the other bytes that are left."""
    while True:
        what, found = rng.choice(_KINDS)(rng, data)
        if found != data:
            return what, found


def flipped(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """One bit."""
    place, bit = rng.randrange(len(data)) if data else 0, 1 << rng.randrange(8)
    if not data:
        return "a byte appended", bytes([bit])
    return f"bit {bit} of byte {place} flipped", data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def cut(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    length = rng.randrange(len(data)) if data else 0
    return f"cut to {length} of {len(data)} bytes", data[:length]


def _zeroed(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    first, last = _span(rng, data)
    return f"bytes {first} to {last} zeroed", data[:first] + bytes(last - first) + data[last:]


def _noise(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    first, last = _span(rng, data)
    return f"bytes {first} to {last} noise", data[:first] + rng.randbytes(last - first) + data[last:]


def _lost(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    first, last = _span(rng, data)
    return f"bytes {first} to {last} lost", data[:first] + data[last:]


def _twice(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    first, last = _span(rng, data)
    return f"bytes {first} to {last} twice", data[:last] + data[first:]


def _appended(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    return "noise appended", data + rng.randbytes(rng.randrange(1, 100))


_KINDS = (flipped, cut, _zeroed, _noise, _lost, _twice, _appended)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    first = rng.randrange(len(data) + 1)
    return first, min(len(data), first + rng.choice((1, 4, 64, 512)))


def damaged_json(rng: random.Random, text: str) -> tuple[str, str]:
    """JSON with one value replaced, lost or renamed."""
    tree = json.loads(text)
    places = list(_places(tree))
    if not places:
        return "made null", "null"
    place = rng.choice(places)
    tree = copy.deepcopy(tree)
    node = tree
    for key in place[:-1]:
        node = node[key]
    name, kind = ".".join(map(str, place)), rng.choice(("value", "value", "value", "lost", "key"))
    if kind == "lost":
        del node[place[-1]]
        return f"{name} lost", json.dumps(tree)
    if kind == "key" and isinstance(node, dict):
        node[f"{place[-1]}x"] = node.pop(place[-1])
        return f"{name} renamed", json.dumps(tree)
    value = rng.choice(HOSTILE)
    node[place[-1]] = value
    return f"{name} made {value!r:.40}", json.dumps(tree)


def _places(tree: Any, inside: tuple[Any, ...] = ()) -> Any:
    """The ways to all values of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*inside, key)
        yield from _places(value, (*inside, key))
