"""Models for which ``transformers`` has no class: their parts, as folders that it loads or files by our names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jaxmm.data.text.byt5 import ByT5Tokenizer
from jaxmm.exporting.configs import completed_config, write_generation
from jaxmm.exporting.output import DTYPES, whole_or_none
from jaxmm.exporting.processors import write_processor, write_tokenizer
from jaxmm.hf.parts import write_folders, write_parts
from jaxmm.hf.pretrained import HEARING, MODEL, SPARE
from jaxmm.hf.processors import PROCESSOR_FILES
from jaxmm.recipe import Recipe


def export_parts(
    recipe: Recipe, params: dict[Any, Any], output: Path, dtype: str, of_run: dict[str, Any], step: int
) -> int:  # fmt: skip
    """Exports a model of our own that takes videos or recordings, for which ``transformers`` has no class."""
    with whole_or_none(output) as half:
        total = write_parts(half, params, recipe.model, recipe.whole, DTYPES[dtype])
        template = recipe.template
        if isinstance(template.tokenizer, ByT5Tokenizer):
            template.tokenizer = template.tokenizer.as_transformers()
        template.tokenizer.save_pretrained(half)
        (half / "config-of-run.json").write_text(json.dumps(of_run, indent=2))
    print(
        f"wrote {output}: {total / 1e6:,.1f} MB of {dtype}, of step {step}. transformers has no class for a model from "
        f"random weights that takes videos or recordings: these are its parts ({', '.join(recipe.model.parts)}), by "
        f"our names, with their sizes in parts.json"
    )
    return 0


def export_joined(
    recipe: Recipe, params: dict[Any, Any], workdir: Path, output: Path, dtype: str, of_run: dict[str, Any], step: int
) -> int:  # fmt: skip
    """Exports a model that sees as one family and hears as another, for which ``transformers`` has no class."""
    start = recipe.start
    assert start is not None
    assert start.hearing is not None
    layout, config = completed_config(recipe, dtype, bool(of_run["data"]["tokenizer"]))
    tied = {"tie_word_embeddings": recipe.model.decoder.tie_embeddings}
    configs = {
        "vision": config["vision_config"], "audio": start.hearing.config["audio_config"],
        "decoder": config["text_config"] | tied,
    }  # fmt: skip
    configs = {part: own | {"dtype": dtype} for part, own in configs.items()}
    new = [part for part in recipe.model.parts if part not in configs]
    with whole_or_none(output) as half:
        total = write_parts(half, params, recipe.model, recipe.whole, DTYPES[dtype], new)
        total += write_folders(half, params, layout, configs, DTYPES[dtype], workdir / MODEL / SPARE)
        write_processor(recipe, workdir, half / "vision")
        for name in PROCESSOR_FILES:
            if (workdir / MODEL / HEARING / name).exists():
                shutil.copyfile(workdir / MODEL / HEARING / name, half / "audio" / name)
        write_tokenizer(recipe, half / "decoder")
        write_generation(recipe, config, workdir, half / "decoder")
        (half / "config-of-run.json").write_text(json.dumps(of_run, indent=2))
    print(
        f"wrote {output}: {total / 1e6:,.1f} MB of {dtype}, of step {step}. transformers has no class for a model that "
        f"sees and hears as this one: these are its parts: vision, audio and decoder as folders, which it loads and "
        f"config.init_from takes, and {' and '.join(new)} as files by our names, with all sizes in parts.json"
    )
    return 0
