"""What the values of a config must be, each by itself and to each other: checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from jaxmm.config.keys import CLIPS, KEYS, OBJECTIVES, OWN_PARTS, PARTS
from jaxmm.config.shares import parse_patterns
from jaxmm.errors import UserError


def check(values: Mapping[str, Any]) -> None:
    """Checks a whole config, its values by dotted keys.

    Raises:
      UserError: with all that is wrong.
    """
    wrong = [told for name, value in values.items() if (told := KEYS[name].wrong(name, value))]
    if wrong := wrong or list(wrong_together(values)):
        raise UserError("; ".join(wrong))


def wrong_together(v: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with values of which each by itself may be."""
    if not v["steps"] and not v["epochs"]:
        yield "config.steps is 0: it must be at least 1, or config.epochs above 0"
    if v["batch_size"] % v["accumulation"]:
        yield f"config.batch_size {v['batch_size']} is no multiple of config.accumulation {v['accumulation']}"
    if len(axes := [name for name in v if name.startswith("mesh.") and v[name] == -1]) > 1:
        yield f"config.{', config.'.join(axes)} are -1: only one axis can take the devices that the others leave"
    frozen = parse_patterns(v["optimizer.freeze"], "config.optimizer.freeze", PARTS)
    if not v["init_from"] and set(frozen) >= set(OWN_PARTS):
        yield "config.optimizer.freeze freezes every part: nothing is left to train"
    if v["data.boxes"] and v["data.jitter"] > 0:
        yield (
            f"config.data.jitter {v['data.jitter']} does not go with config.data.boxes: boxes stay where edges of "
            f"pictures move; set it to 0"
        )
    if v["data.predict_image_tokens"] and not v["data.image_tokens"]:
        yield "config.data.predict_image_tokens=True needs config.data.image_tokens: the size of the codebook"
    if (
        v["eval.split"]
        and v["data.val_size"]
        and (not v["eval.path"] or _place(v["eval.path"]) == _place(v["data.path"]))
    ):
        yield (
            "config.eval.split does not go with config.data.val_size: what is kept from training is of the same split; "
            "leave one of them out, or name other files in config.eval.path"
        )
    if v["compute.matmul"] and v["adapter.base_dtype"] in ("int8", "nf4"):
        yield (
            f"config.compute.matmul={v['compute.matmul']} does not go with config.adapter.base_dtype="
            f"{v['adapter.base_dtype']}: weights in so few bits are multiplied in config.compute.dtype; leave one of "
            f"them out, or set config.adapter.base_dtype=bfloat16"
        )
    yield from _of_adapters(v)
    yield from _of_preferences(v)
    if v["vision.width"] % v["vision.heads"]:
        yield f"config.vision.width {v['vision.width']} is no multiple of config.vision.heads {v['vision.heads']}"
    if v["decoder.heads"] % v["decoder.kv_heads"]:
        heads, kv_heads = v["decoder.heads"], v["decoder.kv_heads"]
        yield f"config.decoder.heads {heads} is no multiple of config.decoder.kv_heads {kv_heads}"
    if v["decoder.head_dim"] % 2:
        yield f"config.decoder.head_dim {v['decoder.head_dim']} is odd: rotary positions turn pairs of numbers"
    least, most = v["image.min_pixels"], v["image.max_pixels"]
    if least and most and least > most:
        yield f"config.image.min_pixels {least} is above config.image.max_pixels {most}"
    if v["init_from"]:  # the folder has the rest
        return
    merge, side = v["image.merge"], v["image.patch_size"] * v["image.merge"]
    if 0 < most < side**2:
        yield (
            f"config.image.max_pixels {most} is less than a soft token: {side} x {side} pixels, by "
            f"config.image.patch_size and config.image.merge"
        )
    if v["patch_budget"] % merge**2:
        yield f"config.patch_budget {v['patch_budget']} is no multiple of config.image.merge squared, {merge**2}"


# Keys that are of adapters alone; two more are refused where the model is known.
ADAPTER = ("adapter.targets", "adapter.alpha", "adapter.kind", "adapter.init", "adapter.dropout")


def _of_adapters(v: Mapping[str, Any]) -> Iterator[str]:
    if v["adapter.rank"] or v["adapter.init_from"]:
        return
    for name in ADAPTER:
        if v[name] != (default := KEYS[name].default):
            yield (
                f"config.{name} is {v[name]!r}, but config.adapter.rank is 0, which is no adapters: set "
                f"config.adapter.rank, or config.{name} to {default!r}"
            )


# Which objectives a key of ``config.preference`` goes with.
PREFERENCE = {
    "beta": OBJECTIVES,
    "margin": ("simpo",),
    "label_smoothing": ("dpo", "simpo"),
    "sft": ("dpo", "ipo", "simpo", "kto"),
    "length_normalised": ("dpo", "kto"),
    "reference": ("dpo", "ipo", "kto"),
    "wanted": ("kto",),
    "unwanted": ("kto",),
}


def _of_preferences(v: Mapping[str, Any]) -> Iterator[str]:
    objective = v["objective"]
    for key, takes in PREFERENCE.items():
        name = f"preference.{key}"
        if objective not in takes and v[name] != KEYS[name].default:
            now = f"config.objective is {objective}" if objective else "config.objective is ''"
            yield f"config.{name} goes with config.objective={' or '.join(takes)}, and {now}: leave it out"
    if objective and v["data.objective"] != "sft":
        yield f"config.objective={objective} learns answers: leave config.data.objective={v['data.objective']} out"
    if objective and v["data.learn"] != "all":
        yield f"config.objective={objective} learns the last answer alone: leave config.data.learn out"
    if objective and not v["data.path"] and v["data.demo"] in CLIPS:
        yield (
            f"config.objective={objective}: the demo of preferences has pictures: leave out "
            f"config.data.demo={v['data.demo']}, or set config.data.path to your own data"
        )


def _place(path: str) -> str:
    """A path made absolute; two URLs stay the same or not."""
    return os.path.abspath(os.path.expanduser(path))
