"""Held-out samples with their maps of attention, as the page's script draws them, made smaller where they must be."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import re
from typing import Any

import numpy as np
from PIL import Image as PILImage

from jaxmm.report.embedding import jpeg
from jaxmm.report.run_data import RunData
from jaxmm.report.thinning import digits, spread

PICTURE_SIZE = 70_000  # characters of a picture: a larger one is made smaller
SMALLER = 0.7  # each time, of its sides
_PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=]*")


def samples_json(run: RunData, size: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The samples of each source in about ``size`` characters, and what was left out for that, a line each."""
    notes: list[str] = []
    sources = [_source(one) for one in run.samples]
    written = sum(len(one["samples"]) for one in run.samples if isinstance(one.get("samples"), list))
    if broken := written - sum(len(one["samples"]) for one in sources):
        notes.append(f"{run.name}: {broken} of {written} held-out samples, as their parts do not fit each other")
    sources = [one for one in sources if one["samples"]]
    if _size(sources) > size:
        for source in sources:
            for sample in source["samples"]:
                for one in sample["media"]:
                    one["src"] = _smaller(one["src"], PICTURE_SIZE)
    if (over := _size(sources) - size) > 0 and (most := max((_heads(s) for s in sources), default=0)):
        maps = sum(len(sample["maps"]["data"]) for source in sources for sample in source["samples"])
        left = max(0, int((1 + most) * (1 - over / max(maps, 1))) - 1)
        for source in sources:
            for sample in source["samples"]:
                _keep_heads(sample, left)
        notes.append(
            f"{run.name}: samples have maps of the {left} heads that look most, of up to {most}, to keep the page small"
        )
    count = sum(len(source["samples"]) for source in sources)
    while _size(sources) > size and any(source["samples"] for source in sources):
        for source in sources:
            few = spread(len(source["samples"]), len(source["samples"]) * 2 // 3) if len(source["samples"]) > 1 else []
            source["samples"] = [source["samples"][i] for i in few]
    if (left := sum(len(source["samples"]) for source in sources)) < count:
        notes.append(f"{run.name}: {left} of {count} held-out samples are here, to keep the page small")
    return [source for source in sources if source["samples"]], notes


def _size(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def _heads(source: dict[str, Any]) -> int:
    return max((len(sample["chosen"]) for sample in source["samples"]), default=0)


def _source(file: dict[str, Any]) -> dict[str, Any]:
    """What a file of samples has, without samples that are not whole."""
    listed = file.get("samples")
    samples = [told for one in listed if (told := _sample(one))] if isinstance(listed, list) else []
    return {
        "source": str(file.get("source", "")),
        "step": file.get("step") if isinstance(file.get("step"), int) else None,
        "samples": samples,
    }


def _sample(one: Any) -> dict[str, Any] | None:
    """A sample as the page has it, or None where its parts do not fit each other."""
    try:
        media = [_medium(medium) for medium in one["media"]]
        tokens, soft = [str(token) for token in one["tokens"]], int(one["soft"])
        chosen = [[int(layer), int(head)] for layer, head in one["chosen"]]
        scale = [digits(float(value), 5) for value in one["maps"]["scale"]]
        data = base64.b64decode(one["maps"]["data"], validate=True)
        fits = len(data) == (1 + len(chosen)) * len(tokens) * soft and len(scale) == 1 + len(chosen)
        ends = [medium["first"] + math.prod(medium["grid"]) for medium in media]
        mass = {
            str(name): [digits(float(value), 4) for value in values]
            for name, values in one["mass"].items() if len(values) == len(tokens)
        }  # fmt: skip
        if not fits or max(ends, default=0) > soft or not all(map(math.isfinite, scale)):
            return None
        return {
            "question": str(one["question"]), "answer": str(one["answer"]), "truth": str(one["truth"]),
            "cut": one.get("cut") is True,
            "tokens": tokens, "media": media, "soft": soft, "mass": mass,
            "maps": {"scale": scale, "data": one["maps"]["data"]}, "chosen": chosen,
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _medium(medium: Any) -> dict[str, Any]:
    """A picture, film sheet or spectrogram; raises where it is none."""
    if not _PICTURE.fullmatch(medium["src"]):
        raise ValueError("no picture")
    told: dict[str, Any] = {name: int(medium[name]) for name in ("width", "height", "first")}
    told |= {"frames": int(medium.get("frames") or 1), "across": max(1, int(medium.get("across") or 1))}
    seconds = medium.get("seconds")
    told |= {"seconds": digits(float(seconds), 4) if seconds is not None else None}
    grid = [int(n) for n in medium["grid"]]
    if len(grid) != 3 or min(*grid, told["width"], told["height"]) < 1 or told["first"] < 0:
        raise ValueError("no grid")
    return {"kind": str(medium["kind"]), "src": medium["src"], "grid": grid, **told}


def _keep_heads(sample: dict[str, Any], count: int) -> None:
    """Leaves the maps of the ``count`` heads that look most at media, in their order, beside the mean."""
    chosen, scale = sample["chosen"], sample["maps"]["scale"]
    if len(chosen) <= count:
        return
    data = np.frombuffer(base64.b64decode(sample["maps"]["data"]), np.uint8).reshape(1 + len(chosen), -1)
    mass = [top * float(np.square(row / 255).sum()) for top, row in zip(scale[1:], data[1:], strict=True)]
    left = sorted(sorted(range(len(chosen)), key=lambda head: -mass[head])[:count])
    rows = [0, *(1 + head for head in left)]
    sample["maps"] = {"scale": [scale[i] for i in rows], "data": base64.b64encode(data[rows].tobytes()).decode()}
    sample["chosen"] = [chosen[head] for head in left]


def _smaller(src: str, size: int) -> str:
    """The picture in so many characters, as a JPEG; one that cannot be read stays out."""
    if len(src) <= size:
        return src
    try:
        picture = PILImage.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))).convert("RGB")
    except (OSError, ValueError, binascii.Error, PILImage.DecompressionBombError):
        return ""
    while len(made := jpeg(np.asarray(picture), 80)) > size and min(picture.size) > 24:
        picture = picture.resize((max(1, int(picture.width * SMALLER)), max(1, int(picture.height * SMALLER))))
    return made
