"""Prepares raw data once, for any number of runs: tokens and encoded images in shards with an index.

    python -m jaxmm.prepare --input=dataset_info.json --mixture=a:0.7,b:0.3 --output=prepared
    python -m jaxmm.train --config=configs/base.py --config.data.path=prepared

The folder is what config.data.path takes, with the same tokenizer and objective. Kill it at any moment and run it
again: finished shards are kept, and the bytes come out the same. train prepares by itself, in its cache, what is not.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from jaxmm import command, formatting
from jaxmm.config.shares import parse_mixture
from jaxmm.corpus import TEMPLATE_KEYS
from jaxmm.data import files
from jaxmm.data.documents import Source
from jaxmm.data.prepare import local_engine, ray_engine, remote, statistics
from jaxmm.data.prepare.prepare import folder_name, prepare
from jaxmm.data.prepare.progress import Progress
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.data.text import boxes
from jaxmm.data.text.chat_options import ChatOptions
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError, nearest
from jaxmm.hf.processors import limits
from jaxmm.image_spec import ImageSpec
from jaxmm.json_text import parse_json
from jaxmm.recipe import OWN_PIXELS

IMAGE_KEYS = ("patch_size", "merge", "min_pixels", "max_pixels")
ENGINES = {"local": local_engine.run, "ray": ray_engine.run}

FLAGS: command.Flags = {
    "input": ("", "dataset_info.json, data file, folder of them, or pattern; a path or a URL"),
    "output": ("", "folder for the prepared sources; a path, or a URL to which they are copied in the end"),
    "mixture": ("", "name:share,name:share or name,name: which sources of the input; shares change nothing here"),
    "objective": ("sft", "as config.data.objective: sft or pretrain"),
    "preferences": ("", "pairs, for config.objective=dpo, ipo, simpo or orpo; judged, for kto; '' is none"),
    "tokenizer": ("", "as config.data.tokenizer: folder of a transformers tokenizer; '' is ByT5's bytes"),
    "image_tokens": (0, "as config.data.image_tokens: size of the codebook of discrete image tokens"),
    "predict_image_tokens": (False, "as config.data.predict_image_tokens"),
    "learn": ("all", "as config.data.learn: which turns of a conversation are learnt"),
    "thinking": ("learn", "as config.data.thinking: learn, mask or off"),
    "special_tokens": ("", "as config.data.special_tokens: those that the data may write"),
    "special_tokens_in": ("assistant,document", "as config.data.special_tokens_in: whose text may"),
    "media_dir": ("", "as config.data.media_dir: folder that images' paths count from; '' is that of the data"),
    "follow_outside": (False, "whether records may name images outside the data's folder and media_dir"),
    "columns": ("", "as config.data.columns: image=img,prompt=question,response=answer"),
    "split": ("", "as config.data.split: of a folder with several; '' is train"),
    "val_size": (
        0.0,
        "as config.data.val_size: the part of the examples that is left out",
    ),
    "held_out": (False, "whether the part that --val_size leaves out is prepared, and not the rest"),
    "placeholder": ("<image>", "as config.data.placeholder: what stands for a picture in a text"),
    "video_placeholder": ("<video>", "as config.data.video_placeholder: what stands for a video"),
    "audio_placeholder": ("<audio>", "as config.data.audio_placeholder: what stands for a recording"),
    "bare_placeholder": ("stop", "as config.data.bare_placeholder: stop, or text: what one is without its medium"),
    "allow_urls": (False, "as config.data.allow_urls: whether pictures that records name by URL are fetched"),
    "url_hosts": ("", "as config.data.url_hosts: addresses of private networks that may be asked too"),
    "on_error": ("stop", "as config.data.on_error: stop, or skip for records that make no sense"),
    "max_skipped": (0.05, "as config.data.max_skipped: part of a source's documents that may be left out"),
    "drop_image": (False, "as config.data.drop_image: whether a dead picture leaves its page"),
    "boxes": ("", "as config.data.boxes: pixels or thousandths; '' leaves texts as they are"),
    "patch_size": (8, "as config.image.patch_size; this and the next three count with --boxes=pixels alone"),
    "merge": (2, "as config.image.merge"),
    "min_pixels": (0, "as config.image.min_pixels, for random weights"),
    "max_pixels": (0, "as config.image.max_pixels, for random weights"),
    "workers": (0, "processes; 0 is one a core where the input is large, else this one alone"),
    "engine": ("local", "local, or ray: a Ray cluster (RAY_ADDRESS), whose machines must all see input and output"),
    "cache": ("", "where shards are made when --output is a URL; '' is $XDG_CACHE_HOME/jaxmm"),
}


def main(argv: list[str]) -> int:
    """Prepares each source of the input, and prints what they hold."""
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "", urls=["output"])
    for name in ("input", "output"):
        if not getattr(args, name):
            raise UserError(f"--{name} is missing: {FLAGS[name][1]}")
    if args.engine not in ENGINES:
        raise UserError(f"--engine '{args.engine}' is not one of {', '.join(ENGINES)}{nearest(args.engine, ENGINES)}")
    template = Template(
        load_tokenizer(args.tokenizer), args.objective, args.image_tokens, args.predict_image_tokens,
        chat=ChatOptions(*(getattr(args, key) for key in ChatOptions._fields)),
    )  # fmt: skip
    for note in template.notes:
        print(note, file=sys.stderr)
    keys = {field.name for field in dataclasses.fields(Reading)} & FLAGS.keys()
    reading = Reading(**{key: getattr(args, key) for key in keys}, image=read_image(args))
    sources = read_sources(args.input, list(parse_mixture(args.mixture, "--mixture")), reading)
    output = files.absolute(args.output)
    is_url = files.is_remote(output)
    cache = Path(args.cache) if args.cache else remote.default_cache()
    local = cache / "prepared" if is_url else Path(output)
    for source in sources:
        refuse_another(source, template, output)
    progress = Progress(quiet_seconds=0.5)
    reports = []
    for source in sources:
        folder = prepare(
            source, template, local, workers=args.workers, engine=ENGINES[args.engine], progress=progress
        )  # fmt: skip
        if is_url:
            progress.say(f"copying {folder} to {output}")
            remote.put(folder, files.join(output, folder.name))
        reports.append(read_report(folder))
    print(closing(reports))
    print(f"\nready: {ready(output, args)}")
    return 0


def read_image(args: Any) -> ImageSpec | None:
    """How a run without ``init_from`` resizes pictures; None where nothing depends on it.

    Raises:
      UserError: if it cannot, or numbers are given that do not count.
    """
    if args.boxes == "model":
        raise UserError("--boxes=model: no model is known here: say pixels or thousandths")
    if args.boxes != boxes.PIXELS:
        if given := [f"--{key}" for key in IMAGE_KEYS if getattr(args, key) != FLAGS[key][0]]:
            raise UserError(f"{', '.join(given)}: without --boxes=pixels nothing depends on image sizes: leave it out")
        return None
    least, most = limits((args.min_pixels, args.max_pixels), OWN_PIXELS)
    try:
        return ImageSpec(args.patch_size, args.merge, least, most)
    except ValueError as error:
        raise UserError(f"--patch_size, --merge, --min_pixels or --max_pixels: {error}") from error


def ready(output: str, args: Any) -> str:
    """The arguments of a run on what was prepared: those that its template comes from, and whom it may ask."""
    given = {"path": output, **({"mixture": args.mixture} if args.mixture else {}), "objective": args.objective}
    keys = (*TEMPLATE_KEYS, "boxes", "allow_urls", "url_hosts")
    given |= {key: getattr(args, key) for key in keys if getattr(args, key) != FLAGS[key][0]}
    image = {key: getattr(args, key) for key in IMAGE_KEYS if getattr(args, key) != FLAGS[key][0]}
    objective = {"pairs": "--config.objective=dpo ", "judged": "--config.objective=kto "}.get(args.preferences, "")
    return objective + " ".join(
        f"--config.{group}.{key}={shlex.quote(str(value))}"
        for group, values in (("data", given), ("image", image)) for key, value in values.items()
    )  # fmt: skip


def read_report(folder: Path) -> dict[str, Any]:
    try:
        return parse_json((folder / "report.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: its report.json is missing or damaged: delete the folder and prepare it again"
        ) from error


def refuse_another(source: Source, template: Template, output: str) -> None:
    """Raises UserError if the output holds the source in another state: a run would not know which to take."""
    wanted = folder_name(source, template)
    for meta in files.matched(files.join(output, "*/meta.json")):
        folder = meta.removesuffix("/meta.json")
        if folder.rpartition("/")[2] == wanted:
            continue
        with files.open_binary(meta) as file:
            try:
                is_same = json.load(file).get("name") == source.name
            except (ValueError, AttributeError) as error:
                raise UserError(f"{meta} is damaged: delete {folder}, or give another --output") from error
        if is_same:
            raise UserError(
                f"{folder} holds '{source.name}' as it was, or with another tokenizer or objective or other boxes: "
                f"delete it, or give another --output"
            )


def closing(reports: list[dict[str, Any]]) -> str:
    """The closing report as text."""
    blocks = [formatting.table(statistics.summary_rows(reports))]
    for one in reports:
        blocks.append(f"{one['name']}: tokens of text in a document\n" + _histogram(one, "token_lengths"))
        if one["image_pixels"]:
            blocks.append(f"{one['name']}: pixels of an image\n" + _histogram(one, "image_pixels"))
    if columns := statistics.column_rows(reports):
        blocks.append("columns of the records\n" + formatting.table(columns))
    if skipped := statistics.skipped_rows(reports):
        blocks.append("left out (each is in skipped.jsonl)\n" + formatting.table(skipped))
    return "\n\n".join(blocks)


def _histogram(one: dict[str, Any], key: str) -> str:
    return formatting.table(statistics.histogram_rows(one, key))


if __name__ == "__main__":
    command.run(main)
