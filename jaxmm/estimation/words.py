"""What instructions of a compiled program are for, in words: from the source lines and the path of JAX's primitives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from jaxmm.estimation.collectives import RAGGED, Collective
from jaxmm.estimation.hlo import Frame, Instruction, Program

KINDS = {
    "all-gather": "gather", "all-reduce": "sum", "reduce-scatter": "scattered sum", "all-to-all": "exchange",
    RAGGED: "exchange of rows", "collective-permute": "permute",
}  # fmt: skip
# The first that a source line's path contains, the outermost line last.
PARTS = {
    "models/towers/audio": "audio tower", "models/towers/": "tower", "models/connector": "connector",
    "models/embedding": "embedding", "models/decoder": "decoder", "training/loss": "loss",
    "training/optimizer": "optimizer", "training/quantized_moments": "optimizer", "optax/": "optimizer",
}  # fmt: skip
GENERAL = ("models/linear", "models/layers", "models/parameters", "sharding", "per_device", "models/decoder_layers")


class Asked(NamedTuple):
    """Who asked for an instruction.

    Attributes:
      part: of the model or the step; "" where that is not known.
      function: of the source, with its file and line; "" where it is not known.
      when: "forward", "backward", or "made again" where the backward pass computes again what the forward pass did.
    """

    part: str
    function: str
    when: str

    def __str__(self) -> str:
        return ", ".join(word for word in (" ".join(filter(None, (self.part, self.function))), self.when) if word)


def asked(program: Program, place: str, one: Instruction) -> Asked:
    """Of an instruction; where it does not tell, of what it takes, and of what takes it."""
    for each in (one, *_beside(program, place, one)):
        if each.op_name or program.frames_of(each):
            return _of(each, program.frames_of(each))
    return Asked("", "", "")


def of_collective(program: Program, one: Collective) -> str:
    """ "gather of decoder SwiGLU (models/block.py:77), forward"; names of its axes are not among it."""
    kind = KINDS.get(one.kind, one.kind)
    if one.kind == "collective-permute" and "windowed_dot_general" in one.place:
        kind = "gather in a ring" if "_ag" in one.place else "scattered sum in a ring"
    return f"{kind} of {asked(program, one.place, one.asked)}".removesuffix(" of ")


def _beside(program: Program, place: str, one: Instruction) -> Iterator[Instruction]:
    instructions = program.computations.get(place, [])
    yield from (each for each in instructions if each.name in one.operands)
    yield from (each for each in instructions if one.name in each.operands)


def _of(one: Instruction, frames: list[Frame]) -> Asked:
    name = one.op_name
    when = "made again" if "rematted_computation" in name else "backward" if "transpose(" in name else ""
    when = when or ("forward" if "jvp(" in name else "")
    own = [frame for frame in frames if "/jaxmm/" in frame.file]
    part = next((part for frame in frames for key, part in PARTS.items() if key in frame.file), "")
    if not frames and (parameter := re.match(r"state\.params\[\\?'(\w+)", name)):
        return Asked(parameter[1], "", when)
    telling = [frame for frame in own if not any(key in frame.file for key in GENERAL)] or own
    function = f"{_short(telling[0].function)} ({_path(telling[0].file)}:{telling[0].line})" if telling else ""
    return Asked(part, function, when)


def _short(function: str) -> str:
    """A method by its class, a function by its own name."""
    names = [name for name in function.split(".") if name != "<locals>"]
    return names[-2] if len(names) > 1 and names[-1] in ("__call__", "<lambda>") else names[-1]


def _path(file: str) -> str:
    parts = PurePosixPath(file).parts
    last = len(parts) - 1 - parts[::-1].index("jaxmm")
    return "/".join(parts[last + 1 :])
