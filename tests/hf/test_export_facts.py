"""What an export says beside its weights: what the folder said that the run started from, and what the run has had."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hf.test_families import CASES
from made_folders import folder_of

from jaxmm import command, export
from jaxmm.errors import UserError
from jaxmm.exporting.configs import write_config, write_generation
from jaxmm.exporting.output import whole_or_none
from jaxmm.exporting.processors import write_processor, write_tokenizer
from jaxmm.hf import model_card
from jaxmm.hf.pretrained import MODEL, PIXELS, save
from jaxmm.image_spec import ImageSpec
from jaxmm.recipe import Recipe, read_recipe

pytestmark = pytest.mark.usefixtures("whole_transformers")
ROOT = Path(__file__).parents[2]
GENERATION = {
    "bos_token_id": 264, "pad_token_id": 5, "eos_token_id": [257, 9], "do_sample": True, "temperature": 0.6,
    "repetition_penalty": 1.05, "of_tomorrow": 2,
}  # fmt: skip


class Begun(NamedTuple):
    recipe: Recipe
    workdir: Path
    folder: Path


def begun(name: str, root: Path, *options: str) -> Begun:
    """A run from a folder as it has begun: with the small files it keeps, and no step done."""
    folder = folder_of(name, root / "theirs", has_weights=False)
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": 264, "eos_token_id": 257, "of_tomorrow": 1, "torch_dtype": "bfloat16"}
    del config["dtype"], config["architectures"], config["_name_or_path"]
    config["text_config"] |= {"bos_token_id": 263, "of_tomorrow": [1]}
    if not config["text_config"].get("hidden_size_per_layer_input"):  # else soft tokens have its row, and it is 0
        config["text_config"]["pad_token_id"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    flags = [f"--config={ROOT / 'configs/base.py'}", f"--config.init_from={folder}", *options]
    recipe = read_recipe(command.parse(flags, {}).config)
    assert recipe.start is not None
    save(recipe.start, [], root / "run" / MODEL)
    return Begun(recipe, root / "run", folder)


def exported(run: Begun, out: Path) -> None:
    """Its small files."""
    out.mkdir()
    _, config = write_config(run.recipe, out, "bfloat16")
    write_tokenizer(run.recipe, out)
    write_processor(run.recipe, run.workdir, out)
    write_generation(run.recipe, config, run.workdir, out)


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        line.split(":")[0]: line for line in command.differences(before, after) if "(absent) ->" not in line
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_folder_says_survives(name, tmp_path):
    run = begun(name, tmp_path)
    exported(run, tmp_path / "out")
    read = {
        file: [json.loads((folder / file).read_text()) for folder in (run.folder, tmp_path / "out")]
        for file in ("config.json", "generation_config.json", "preprocessor_config.json")
    }
    # The dtype's name of today; all that ends answers; the tokenizer's image token, if the config had another.
    assert changed(*read["config.json"]).keys() - {"image_token_id", "image_token_index"} == {
        "torch_dtype", "eos_token_id", "text_config.eos_token_id",
    }  # fmt: skip
    assert set(GENERATION["eos_token_id"]) <= set(read["config.json"][1]["eos_token_id"])
    assert changed(*read["generation_config.json"]).keys() == {"eos_token_id"}
    assert set(GENERATION["eos_token_id"]) <= set(read["generation_config.json"][1]["eos_token_id"])
    assert changed(*read["preprocessor_config.json"]) == {}
    assert export.base_dtype(run.recipe.start) == "bfloat16"


@pytest.mark.parametrize(
    ("name", "options", "limits", "written"),
    [
        ("siglip2 + llama", {}, (64, 1024), {"min_image_tokens": 1, "max_image_tokens": 16}),
        ("siglip2 + llama", {"max": 2000}, (64, 1984), {"min_image_tokens": 1, "max_image_tokens": 31}),
        ("siglip2 + llama", {"min": 4096}, (4096, 4096), {"min_image_tokens": 64, "max_image_tokens": 64}),
        ("qwen2.5-vl", {}, (64, 1024), {"size": {"shortest_edge": 64, "longest_edge": 1024}}),
        ("qwen2.5-vl", {"min": 100, "max": 5000}, (100, 5000), {"size": {"shortest_edge": 100, "longest_edge": 5000}}),
        ("llava, clip", {"max": 5000}, (1, 256), {"size": {"shortest_edge": 16}}),
    ],
)
def test_limits_of_pictures_that_are_given_count_and_go_out_and_others_are_the_folders(
    name, options, limits, written, tmp_path, capsys
):
    asked = [f"--config.image.{which}_pixels={pixels}" for which, pixels in options.items()]
    run = begun(name, tmp_path, *asked)
    assert (run.recipe.image.min_pixels, run.recipe.image.max_pixels) == limits
    exported(run, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert written.items() <= found.items()
    told = " ".join(run.recipe.start.differences())
    assert ("are not followed: this tower takes 16 x 16" in told) == (name == "llava, clip")
    assert ("made whole soft tokens" in told) == (options.get("max") == 2000)
    # Gone on with, whatever the config says then: what the first start settled.
    (run.workdir / "checkpoints" / "1").mkdir(parents=True)
    flags = [f"--config={ROOT / 'configs/base.py'}", "--config.image.max_pixels=10000000"]
    again = read_recipe(command.parse(flags, {}).config, run.workdir)
    assert (again.image.min_pixels, again.image.max_pixels) == limits
    is_settled = (run.workdir / MODEL / PIXELS).exists()
    assert ("do not count" in capsys.readouterr().err) == is_settled == (name != "llava, clip")
    assert read_recipe(command.parse([*flags[:1], *asked], {}).config, run.workdir).image == again.image
    assert capsys.readouterr().err == ""
    # A run of jaxmm 0.1 has settled nothing, and what its config had from base.py did not count.
    (run.workdir / MODEL / PIXELS).unlink(missing_ok=True)
    old = [f"--config={ROOT / 'configs/base.py'}", "--config.image.min_pixels=2304", "--config.image.max_pixels=9216"]
    image = read_recipe(command.parse(old, {}).config, run.workdir).image
    assert (image.min_pixels, image.max_pixels) == {"siglip2 + llama": (64, 1024), "qwen2.5-vl": (64, 1024)}.get(
        name, (1, 256)
    )
    assert capsys.readouterr().err == ""


def test_a_card_has_names_and_no_places():
    assert model_card.names_alone("/home/me/secret/model") == "model"
    assert model_card.names_alone("vision:/home/me/a,decoder:../b:c") == "vision: a, decoder: b:c"
    assert model_card.names_alone("s3://bucket/data.json") == "s3://bucket/data.json"
    assert model_card.names_alone("/home/a:b/c,d") == "c,d"
    assert model_card.names_alone("") == ""


def test_figures_are_of_the_step_that_is_exported(tmp_path):
    lines = [{"step": 10, "loss": 2.0}, {"step": 10, "eval": {"held": {"loss": 2.357, "answers": 8}}},
             {"step": 20, "eval": {"held": {"loss": 1.295}}}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "summary.json").write_text(json.dumps({"eval": {"held": {"loss": 1.295}}}))
    assert model_card.evaluation(tmp_path, 10) == ["| evaluation, held | loss 2.357 |"]
    assert model_card.evaluation(tmp_path, 15) == []
    config = command.to_json(command.parse([f"--config={ROOT / 'configs/base.py'}"], {}).config)
    assert f"| steps | 10 of {config['steps']} |" in model_card.model_card("run", "X", config, 10, ImageSpec())
    assert "| objective | sft |" in model_card.model_card("run", "X", config, 10, ImageSpec())
    card = model_card.model_card("run", "X", config | {"epochs": 2.5, "objective": "dpo"}, 10, ImageSpec())
    assert "| steps | 10 of 2.5 epochs |" in card
    assert "| objective | dpo |" in card


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_of_an_export_that_cannot_be_written_nothing_is_left(error, tmp_path):
    (tmp_path / "out.unfinished").mkdir()  # of one that was killed
    (tmp_path / "out.unfinished" / "old").write_text("half")

    def write() -> None:
        with whole_or_none(tmp_path / "out") as half:
            (half / "config.json").write_text("{}")
            raise error

    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        write()
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"--output {tmp_path / 'out'} could not be written (No space left on device); nothing of it is left"
        )


def test_a_full_disk_under_the_weights_is_one_line(tmp_path):
    """safetensors has an error of its own for it."""
    from safetensors import SafetensorError

    with (
        pytest.raises(UserError, match=r"could not be written .*No space left"),
        whole_or_none(tmp_path / "out"),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []
