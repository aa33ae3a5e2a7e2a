"""The model card of an exported folder: what the model is, and how it was trained up to the exported step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import jaxmm
from jaxmm.atomic import read_lines
from jaxmm.data.files import is_remote
from jaxmm.image_spec import ImageSpec


def model_card(
    title: str, architecture: str, config: Mapping[str, Any], step: int, image: ImageSpec, adapters: str = ""
) -> list[str]:
    """Returns lines of Markdown that end in a table.

    Args:
      config: of the run when it saved this step, as plain values.
      adapters: what they are, of a folder that holds adapters alone.
    """
    data, optimizer = config["data"], config["optimizer"]
    mixture = f", {data['mixture']}" if data["mixture"] else ""
    length = f"{config['epochs']:g} epochs" if config.get("epochs") else f"{config['steps']}"
    tag = "image-text-to-text" if image.is_sighted else "audio-text-to-text"
    area = f"| image patches | {image.patch_size} pixels, {image.merge**2} of them a soft token |"
    seen = [area] if image.is_sighted else []
    base = names_alone(config["init_from"])
    what = f"Adapters of a {architecture}, {base}" if adapters else f"A {architecture}"
    beneath = [f"base_model: {base}"] if adapters else []
    return [
        "---", f"library_name: {'peft' if adapters else 'transformers'}", *beneath, f"pipeline_tag: {tag}",
        "tags: [jaxmm]", "---", "",
        f"# {title}", "",
        f"{what}, trained with jaxmm {jaxmm.__version__}.", "",
        "| | |", "|---|---|",
        f"| started from | {base or 'random weights'} |",
        f"| data | {names_alone(data['path']) or 'the demo'}{mixture} |",
        f"| objective | {config.get('objective') or data['objective']} |",
        f"| steps | {step} of {length} |",
        f"| a step | {config['batch_size']} rows of {config['seq_len']} tokens |",
        f"| optimizer | {optimizer['name']}, rate {optimizer['rate']} |",
        f"| adapters | {adapters} |" if adapters else f"| frozen | {optimizer['freeze'] or 'nothing'} |",
        *seen,
    ]  # fmt: skip


def evaluation(workdir: Path, step: int) -> list[str]:
    """Returns a table row for each source that the run was evaluated on at this step; [] if it was not."""
    evaluations = [
        line["eval"] for line in read_lines(workdir / "metrics.jsonl") if line.get("step") == step and "eval" in line
    ]
    lines = []
    for source, figures in (evaluations[-1] if evaluations else {}).items():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float))
        lines.append(f"| evaluation, {source} | {shown} |")
    return lines


def names_alone(places: str) -> str:
    """Strips parent folders from ``DIR`` or ``vision:DIR,decoder:DIR``: only names stay. A URL stays as it is."""
    if is_remote(places):
        return places
    if not places.startswith(("vision:", "audio:", "decoder:")):
        return PurePath(places).name
    entries = (entry.strip().partition(":") for entry in places.split(","))
    return ", ".join(f"{part}: {PurePath(place).name}" for part, _, place in entries)
