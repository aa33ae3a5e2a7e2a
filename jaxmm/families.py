"""Lists the models that can be read, trained and written; or says what a folder holds, of which config.json is enough.

python -m jaxmm.families
python -m jaxmm.families --folder=models/Qwen3-VL-4B-Instruct
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxmm import command
from jaxmm.formatting import short
from jaxmm.hf import folder as hf
from jaxmm.hf.audio_towers import AUDIO_TOWERS
from jaxmm.hf.decoders import DECODERS
from jaxmm.hf.families.family import Family
from jaxmm.hf.families.registry import FAMILIES
from jaxmm.hf.towers import joinable
from jaxmm.models.multimodal import flat_axes

FLAGS: command.Flags = {"folder": ("", "a model's folder: says what it is, from its config.json")}
WIDTH = 100


def takes(family: Family) -> str:
    """What a family takes beside text."""
    kinds = ("images", family.pictures), ("videos", family.videos), ("recordings", family.audio_extractor)
    return ", ".join(name for name, has in kinds if has)


def listed() -> Iterator[str]:
    """The lines of the list."""
    yield "Whole models, by --config.init_from=DIR:"
    column = max(map(len, FAMILIES))
    for name, family in FAMILIES.items():
        yield f"  {name:<{column}} {takes(family)}"
        yield from _wrapped(family.releases, " " * (column + 3))
    yield "Towers for --config.init_from=vision:DIR,decoder:DIR, also of CLIP, SigLIP and SigLIP 2 as a whole:"
    yield from _wrapped(joinable(), "  ")
    yield "Towers for --config.init_from=audio:DIR,decoder:DIR:"
    yield from _wrapped(AUDIO_TOWERS, "  ")
    yield "Decoders for both:"
    yield from _wrapped((name for name, kind in DECODERS.items() if kind.joins), "  ")


def _wrapped(names: Iterable[str], margin: str) -> list[str]:
    return textwrap.wrap(
        ", ".join(names), WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )


def described(folder: Path) -> str:
    """What a folder holds. Raises UserError for what is not supported."""
    family, layout, _ = hf.read_whole(folder)
    counts: Counter[str] = Counter()
    for path, (shape, _) in flat_axes(layout.spec).items():
        counts[path[0]] += math.prod(shape)
    parts = ", ".join(f"{part} {short(count)}" for part, count in counts.items())
    return f"{folder}: {family.name}, takes {takes(family)}; {short(counts.total())} parameters: {parts}"


def main(argv: list[str]) -> int:
    """Prints the list, or what a folder holds."""
    folder = command.parse(argv, FLAGS, config="none", about=(__doc__ or "").partition("\n")[0]).folder
    print(described(Path(folder).expanduser()) if folder else "\n".join(listed()))
    return 0


if __name__ == "__main__":
    command.run(main)
