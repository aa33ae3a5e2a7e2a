"""Boxes from a record to the tokens of a row, for one size of pictures and no other."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import made_folders
import PIL.Image
import pytest

from jaxmm import command, encode_features
from jaxmm import prepare as prepare_data
from jaxmm.corpus import make_assembler, read_jitter
from jaxmm.data.packing.plan import Budgets, cut
from jaxmm.data.prepare.prepare import folder_name
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError
from jaxmm.hf.families.registry import FAMILIES
from jaxmm.recipe import read_boxes, read_data, train_corpus
from jaxmm.report.view import Viewer

ROOT = Path(__file__).parents[1]
QUESTION = "<image><image>Where is the <ref-object>? Not at <bbox>."
RECORD = {
    "messages": [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": 'At <bbox>. {"bbox_2d": [0, 8, 16, 32]}'},
    ],
    "images": ["wide.png", "tall.png"],
    "objects": {"ref": ["cat"], "bbox": [[0, 0, 100, 50], [8, 8, 16, 32]], "image_id": [0, 1]},
}


@pytest.fixture
def data(tmp_path) -> Path:
    PIL.Image.new("RGB", (200, 50)).save(tmp_path / "wide.png")
    PIL.Image.new("RGB", (16, 32)).save(tmp_path / "tall.png")  # is grown to 48 x 80
    path = tmp_path / "swift.jsonl"
    path.write_text(json.dumps(RECORD) + "\n")
    return path


def config_of(tmp_path: Path, *flags: str):
    cache = f"--config.data.cache={tmp_path / 'cache'}"
    return command.parse([f"--config={ROOT / 'configs/base.py'}", cache, *flags], {}, about="").config


def read(tmp_path: Path, path: Path, boxes: str, *flags: str):
    """The prepared folder, and its only text as ids give it back."""
    config = config_of(tmp_path, f"--config.data.path={path}", f"--config.data.boxes={boxes}", *flags)
    recipe = read_data(config)
    (source,) = train_corpus(config, recipe).lengths
    text = recipe.template.decode(source.prepared.read(0).tokens)
    return source.prepared.folder, text


def test_the_ids_of_a_record_of_two_pictures_say_where_things_are_in_what_the_tower_sees(tmp_path, data):
    # 200 x 50 becomes 192 x 48, as the area is below 96 * 96 and near whole soft tokens; 16 x 32 is grown to 48 x 80.
    (_, pixels), (_, parts) = read(tmp_path, data, "pixels"), read(tmp_path, data, "thousandths")
    assert pixels == 'Where is the cat? Not at [0, 0, 96, 48].At [24, 20, 48, 80]. {"bbox_2d": [0, 20, 48, 80]}'
    assert parts == (
        'Where is the cat? Not at [0, 0, 500, 1000].At [500, 250, 1000, 1000]. {"bbox_2d": [0, 250, 1000, 1000]}'
    )


def test_the_page_shows_boxes_beside_pictures_of_that_size(tmp_path, data):
    config = config_of(tmp_path, f"--config.data.path={data}", "--config.data.boxes=pixels")
    recipe = read_data(config)
    corpus = train_corpus(config, recipe)
    budgets = Budgets(512, 512, 8, 512)
    loaded = make_assembler(config, recipe.image, corpus, budgets)(
        [[piece] for piece, _ in cut(corpus.lengths[0], 0, 0, budgets)]
    )
    (view,) = Viewer(corpus.lengths, recipe.template, recipe.image).row(loaded, 0)
    assert view.boxes == ["[0, 0, 96, 48]", "[24, 20, 48, 80]", '"bbox_2d": [0, 20, 48, 80]']
    assert [picture.pixels.shape[:2] for picture in view.pictures] == [(48, 192), (80, 48)]


def test_only_pixels_are_prepared_again_for_other_image_sizes(tmp_path, data):
    larger = "--config.image.max_pixels=40000"
    assert read(tmp_path, data, "thousandths")[0] == read(tmp_path, data, "thousandths", larger)[0]
    least = "--config.image.min_pixels=10000", larger
    (first, text), (other, changed) = read(tmp_path, data, "pixels"), read(tmp_path, data, "pixels", *least)
    assert first != other
    assert text != changed


def test_prepared_boxes_are_refused_for_other_pictures_or_another_kind(tmp_path, data):
    folder, text = read(tmp_path, data, "pixels")
    assert read(tmp_path, folder, "pixels")[1] == text
    for boxes, flags, told in (
        ("pixels", ["--config.image.max_pixels=40000"], "this run asks for boxes in pixels .* 40000 pixels"),
        ("thousandths", [], "this run asks for boxes in thousandths"),
        ("''", [], "this run asks for boxes as the data has them"),
    ):
        with pytest.raises(UserError, match=f"was prepared with boxes in pixels .* 9216 pixels, {told}") as caught:
            read(tmp_path, folder, boxes.strip("'"), *flags)
        assert "\n" not in str(caught.value)


def test_what_was_prepared_without_boxes_is_refused_with_them(tmp_path):
    path = tmp_path / "plain.jsonl"
    path.write_text('{"text": "page"}\n')
    folder, _ = read(tmp_path, path, "")
    with pytest.raises(UserError, match="was prepared with boxes as the data has them"):
        read(tmp_path, folder, "thousandths")


def test_without_boxes_the_key_of_prepared_data_is_as_it_was(tmp_path):
    path = tmp_path / "plain.jsonl"
    path.write_text('{"text": "page"}\n')
    recipe = read_data(config_of(tmp_path))
    (plain,), (given,) = (read_sources(str(path), [], Reading(image=image)) for image in (None, recipe.image))
    assert "boxes" not in json.loads(plain.entry)
    assert folder_name(plain, recipe.template) == folder_name(given, recipe.template)


def test_a_box_that_makes_no_sense_stops_or_is_left_out_and_listed(tmp_path, data):
    wrong = RECORD | {"objects": RECORD["objects"] | {"image_id": [0, 0], "bbox": [[0, 0, 1, 1], [0, 0, 202, 50]]}}
    data.write_text(f"{json.dumps(RECORD)}\n{json.dumps(wrong)}\n")
    with pytest.raises(UserError, match=r"swift.jsonl, record 1: .* outside of its picture of 200 x 50 pixels"):
        read(tmp_path, data, "pixels")
    folder, _ = read(tmp_path, data, "pixels", "--config.data.on_error=skip")
    (line,) = (folder / "skipped.jsonl").read_text().splitlines()
    skipped = json.loads(line)
    assert (skipped["record"], skipped["reason"]) == (1, "no sense")
    assert "outside of its picture" in skipped["detail"]


def start_of(family: str):
    return SimpleNamespace(family=FAMILIES[family])


def test_a_model_has_boxes_as_its_family_learnt_them(tmp_path):
    config = config_of(tmp_path, "--config.data.boxes=model")
    wanted = {
        "qwen2_vl": "thousandths", "qwen2_5_vl": "pixels", "qwen3_vl": "thousandths", "qwen3_vl_moe": "thousandths",
        "internvl": "thousandths", "glm4v": "thousandths", "glm46v": "thousandths",
        "glm4v_moe": "thousandths",
    }  # fmt: skip
    found = {family: read_boxes(config, start_of(family)) for family in wanted}
    assert found == wanted
    for start in [None, *map(start_of, FAMILIES.keys() - found.keys())]:
        with pytest.raises(UserError, match="say pixels or thousandths"):
            read_boxes(config, start)


@pytest.mark.usefixtures("whole_transformers")
def test_a_folder_says_how_its_boxes_are_written(tmp_path, data):
    """Qwen2.5-VL's in pixels between the folder's own limits, InternVL's in thousandths, whatever its tiles."""

    def answer(name: str, boxes: str = "model") -> str:
        folder = tmp_path / name.replace(", ", "-")
        if not folder.exists():
            made_folders.folder_of(name, folder, has_weights=False)
        text = read(tmp_path, data, boxes, f"--config.init_from={folder}")[1]
        return text[text.index("Not at [") :]

    # 1024 pixels at most, in multiples of 8: 200 x 50 becomes 64 x 16, and 16 x 32 stays.
    assert answer("qwen2.5-vl").startswith("Not at [0, 0, 32, 16].")
    assert "[8, 8, 16, 32]" in answer("qwen2.5-vl")
    assert answer("qwen3-vl").startswith("Not at [0, 0, 500, 1000].")
    assert answer("internvl").startswith("Not at [0, 0, 500, 1000].")
    with pytest.raises(UserError, match="cuts pictures into tiles"):
        answer("internvl", "pixels")
    with pytest.raises(UserError, match="crops pictures"):
        answer("llava, clip", "thousandths")


def test_pictures_with_boxes_do_not_move(tmp_path):
    assert read_jitter(config_of(tmp_path)) > 0
    assert read_jitter(config_of(tmp_path, "--config.data.boxes=thousandths")) == 0
    with pytest.raises(UserError, match="boxes stay where edges of pictures move"):
        config_of(tmp_path, "--config.data.boxes=thousandths", "--config.data.jitter=0.1")


def test_the_demo_has_no_boxes(tmp_path):
    config = config_of(tmp_path, "--config.data.boxes=pixels")
    with pytest.raises(UserError, match="the demo has no boxes"):
        train_corpus(config, read_data(config))


def test_features_of_pictures_have_no_boxes(tmp_path, data):
    config = config_of(tmp_path, f"--config.data.path={data}", "--config.data.boxes=pixels")
    with pytest.raises(UserError, match="boxes cannot be told of ready-made features"):
        encode_features.raw_sources(config, read_data(config))


# tools/prepare_data.py


def test_what_the_tool_prepares_a_run_takes(tmp_path, data, capsys):
    tool, sizes = prepare_data, ["--max_pixels=40000", "--min_pixels=10000"]
    output = f"--output={tmp_path / 'out'}"
    assert tool.main([f"--input={data}", output, "--boxes=pixels", *sizes]) == 0
    flags = shlex.split(capsys.readouterr().out.rpartition("ready: ")[2])
    config = config_of(tmp_path, *flags)
    (prepared,) = train_corpus(config, read_data(config)).lengths
    folder, _ = read(tmp_path, data, "pixels", *(size.replace("--", "--config.image.") for size in sizes))
    assert prepared.prepared.meta["fingerprint"] == json.loads((folder / "meta.json").read_text())["fingerprint"]
    with pytest.raises(UserError, match="or other boxes"):
        tool.main([f"--input={data}", output, "--boxes=thousandths"])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--boxes=model"], "no model is known here"),
        (["--boxes=thousandths", "--max_pixels=9"], "--max_pixels: without --boxes=pixels nothing depends on"),
        (["--boxes=pixels", "--patch_size=0"], "--patch_size, --merge, --min_pixels or --max_pixels"),
        (["--boxes=pixel"], "must be one of pixels, thousandths"),
        (["--boxes=pixels", "--drop_image=True"], "cannot be used with"),
    ],
)
def test_mistakes_of_the_tool_are_one_line(tmp_path, data, flags, told):
    with pytest.raises(UserError, match=told) as caught:
        prepare_data.main([f"--input={data}", f"--output={tmp_path / 'out'}", *flags])
    assert "\n" not in str(caught.value)
