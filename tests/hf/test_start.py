"""What a folder says of its images, and what its kind of processor does where it does not say it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from made_folders import IMAGES, folder_of
from parities import models as parity_models

from jaxmm.api import load_config
from jaxmm.errors import UserError
from jaxmm.hf.families.registry import FAMILIES
from jaxmm.hf.pretrained import image_settings, read_start
from jaxmm.hf.videos import asked_for
from jaxmm.image_spec import ImageSpec
from jaxmm.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("whole_transformers")


def start_of(name: str, folder, **processor):
    folder.mkdir(exist_ok=True)
    config = parity_models.case(name).config(np.random.default_rng(0))
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return read_start(str(folder), None, 2, 0)


@pytest.mark.parametrize(
    ("name", "said", "wanted"),
    [
        ("siglip2 + llama", {"do_convert_rgb": True}, {"min_pixels": 64 * 64, "max_pixels": 256 * 64,
         "resample": "bilinear"}),
        ("llava, clip", IMAGES["llava, clip"], {"side": 16, "crop": True, "resample": "bicubic"}),
        ("llava, clip", {"size": 16, "crop_size": 16, "do_center_crop": False}, {"side": 16, "crop": False}),
        ("llava, siglip", IMAGES["llava, siglip"], {"side": 20, "crop": False, "resample": "bicubic"}),
        ("qwen2.5-vl", {"min_pixels": 256, "max_pixels": 4096}, {"min_pixels": 256, "max_pixels": 4096, "thin": True}),
        ("gemma3", {**IMAGES["gemma3"], "do_pan_and_scan": None},
         {"side": 16, "resample": "bilinear", "max_tiles": 1, "split": None}),
        ("gemma4", IMAGES["gemma4"], {"filled": True, "max_pixels": 70 * 144, "resample": "bicubic", "merge": 3}),
        ("internvl", {"size": {"height": 16, "width": 16}}, {"side": 16, "min_tiles": 1, "max_tiles": 12}),
        ("internvl", {**IMAGES["internvl"], "max_patches": 1}, {"side": 16, "max_tiles": 1}),
        ("glm-4.1v", {"size": {"shortest_edge": 256, "longest_edge": 4096}},
         {"min_pixels": 128, "max_pixels": 2048, "least_side": "floor", "resample": "bicubic"}),
        ("paddleocr-vl", {"min_pixels": 128, "max_pixels": 2048, "image_mean": [0.5, 0.5, 0.5]},
         {"min_pixels": 128, "max_pixels": 2048, "least_side": "round", "resample": "bicubic"}),
        ("llava-next", IMAGES["llava_next"],
         {"side": 8, "newline": True, "crop": False, "resample": "bicubic", "class_tokens": 1}),
        ("llava-onevision", IMAGES["llava_onevision"],
         {"side": 14, "newline": True, "mixes": True, "resample": "bicubic", "class_tokens": 0}),
        ("mistral3", {"size": {"longest_edge": 40}},
         {"max_pixels": 1600, "by_longest": True, "row_break": "[IMG_BREAK]", "resample": "bicubic"}),
    ],
)  # fmt: skip
def test_images_are_processed_as_the_family_does_by_default(name, said, wanted, tmp_path):
    spec = ImageSpec(**image_settings(start_of(name, tmp_path, **said)))
    assert {key: getattr(spec, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"patch_size": 16}, "image processor has patch_size=16, its config.json 4: make them equal"),
        ({"pooling_kernel_size": 2}, "image processor has pooling_kernel_size=2, its config.json 3"),
        ({"max_soft_tokens": 140}, "of 140 soft tokens are up to 420 patches wide, and this tower has 240 positions"),
    ],
)
def test_pictures_that_the_tower_has_no_positions_or_patches_for_are_refused(said, message, tmp_path):
    with pytest.raises(UserError, match=message):
        image_settings(start_of("gemma4", tmp_path, **said))


def test_a_limit_becomes_a_number_of_soft_tokens_that_the_processor_knows(tmp_path):
    start = start_of("gemma4", tmp_path, **IMAGES["gemma4"])
    assert image_settings(start.settled((0, 100 * 144)))["max_pixels"] == 70 * 144
    with pytest.raises(UserError, match=r"max_pixels=10000 is below 70 soft tokens of 144 pixels"):
        start.settled((0, 10000))


def test_mean_and_deviation_are_the_folders_else_the_kinds(tmp_path):
    def vision(**processor):
        return start_of("llava, clip", tmp_path, size=16, crop_size=16, **processor).layout.spec.vision

    assert vision().mean == (0.48145466, 0.4578275, 0.40821073)
    assert vision(image_mean=[0.1, 0.2, 0.3]).mean == (0.1, 0.2, 0.3)
    assert vision(image_mean=[0.1, 0.2, 0.3], do_normalize=False).std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"size": {"shortest_edge": 20}, "crop_size": 16}, "takes 16 x 16"),
        ({"size": {"shortest_edge": 16}, "do_center_crop": False}, "takes 16 x 16"),
        ({"image_processor_type": "BlipImageProcessor"}, "processed by BlipImageProcessor are not supported"),
        ({**IMAGES["llava, clip"], "resample": 4}, "resampled by Pillow's 4"),
    ],
)
def test_what_cannot_be_done_is_one_line(said, message, tmp_path):
    with pytest.raises(UserError, match=message):
        image_settings(start_of("llava, clip", tmp_path, **said))


@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json", "generation_config.json"])
@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[1]", "is no JSON object")])
def test_settings_that_are_not_whole_are_one_line(name, text, message, tmp_path):
    start_of("gemma3", tmp_path, **IMAGES["gemma3"])
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_start(str(tmp_path), None, 2, 0)


def test_a_longest_edge_is_the_root_of_the_area_that_is_asked_for(tmp_path):
    start = start_of("mistral3", tmp_path, **IMAGES["mistral3"])
    assert start.settled((0, 0)).pixels == (64, 1024)
    settled = start.settled((100, 2000))
    assert settled.pixels == (64, 44**2)
    assert settled.told == (
        "config.image.min_pixels is not followed: pictures are only made smaller; max_pixels is that of a longest edge "
        "of 44 pixels, 1936",
    )
    assert start.family.pictures.resized(start.processor, settled.pixels, start.layout.spec)["size"] == {
        "longest_edge": 44
    }
    with pytest.raises(UserError, match="only longest_edge is supported"):
        image_settings(start_of("mistral3", tmp_path, size={"height": 32, "width": 32}))


def test_what_is_not_followed_is_told(tmp_path):
    assert start_of("internvl", tmp_path, **IMAGES["internvl"], crop_to_patches=True).differences() == []
    assert start_of("siglip2 + llama", tmp_path, max_image_tokens=64).differences() == []
    assert start_of("gemma3", tmp_path, **IMAGES["gemma3"], do_pan_and_scan=True).differences() == []
    (line,) = start_of("internvl", tmp_path, **IMAGES["internvl"], do_pan_and_scan=True).differences()
    assert "do_pan_and_scan is not followed" in line
    (line,) = start_of("llava, clip", tmp_path, **IMAGES["llava, clip"], do_pad=True).differences()
    assert "do_pad" in line


def test_a_folder_says_by_which_class_its_videos_are_taken(tmp_path, capsys):
    """GLM-4.5V's and GLM-4.6V's differ; neither bounds the number of frames, and the second knows no rate."""

    def own(kind: str) -> dict:
        (tmp_path / "video_preprocessor_config.json").write_text(json.dumps({"video_processor_type": kind}))
        return videos.settings(tmp_path, {}, 2)

    videos = FAMILIES["glm4v_moe"].videos
    assert videos is not None
    steps, dynamic = own("Glm4vVideoProcessor"), own("Glm46VVideoProcessor")
    assert [one["sampling"] for one in (steps, dynamic)] == ["steps", "dynamic"]
    assert asked_for(steps, {"fps": 3.0}).fps == asked_for(dynamic, {"fps": 3.0, "sampling": "steps"}).fps == 3.0
    with pytest.raises(UserError, match=r"config\.video\.fps is not followed by config\.video\.sampling=dynamic"):
        asked_for(dynamic, {"fps": 3.0})
    for asked, told in (({}, ""), ({"max_frames": 8}, "Glm46VVideoProcessor knows no min_frames and max_frames")):
        image = ImageSpec(video=asked_for(dynamic, asked))
        written = videos.written(tmp_path, image, [0.5] * 3, [0.5] * 3)
        assert written["video_processor_type"] == "Glm46VVideoProcessor"
        assert "max_frames" not in written
        warned = capsys.readouterr().err
        assert told in warned
        assert bool(warned) == bool(told)
    with pytest.raises(UserError, match="those by Glm4vVideoProcessor or Glm46VVideoProcessor are"):
        own("Qwen3VLVideoProcessor")


def test_frames_that_are_squares_have_the_size_of_the_tower_and_a_number_if_the_folder_says_one(tmp_path, capsys):
    videos, side = FAMILIES["llava_onevision"].videos, 14
    assert videos is not None

    def own(**said) -> dict:
        (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(said))
        return videos.settings(tmp_path, {"vision_config": {"image_size": side}}, 1)

    found = asked_for(own(size={"height": side, "width": side}), {})
    assert (found.fps, found.min_frames, found.sampling, found.pool, found.newline) == (1.0, 1, "even", 2, True)
    image = dataclasses.replace(
        ImageSpec(patch_size=4, merge=1, side=side), video=dataclasses.replace(found, newline=False)
    )
    written = videos.written(tmp_path, image, [0.5] * 3, [0.5] * 3)
    assert (written["size"], written["fps"]) == ({"height": side, "width": side}, 1.0)
    assert (written["num_frames"], written["do_sample_frames"], "patch_size" in written) == (None, True, False)
    found = asked_for(own(num_frames=8), {})
    assert (found.min_frames, found.max_frames) == (8, 8)
    image = dataclasses.replace(image, video=dataclasses.replace(found, newline=False))
    written = videos.written(tmp_path, image, [0.5] * 3, [0.5] * 3)
    assert (written["num_frames"], written["fps"], capsys.readouterr().err) == (8, None, "")
    own(size={"height": 28, "width": side})
    with pytest.raises(UserError, match=r"frames of .*, its tower takes .*14.*14.*: make them equal"):
        videos.check(tmp_path, {"vision_config": {"image_size": side}}, (0.5,) * 3, (0.5,) * 3)
    own(image_mean=[0.1] * 3)
    with pytest.raises(UserError, match=r"video processor has image_mean=\[0.1, 0.1, 0.1\], its image processor"):
        videos.check(tmp_path, {"vision_config": {"image_size": side}}, (0.5,) * 3, (0.5,) * 3)
    own(image_mean=0.5, size={"height": side, "width": side})
    videos.check(tmp_path, {"vision_config": {"image_size": [side, side]}}, (0.5,) * 3, (0.5,) * 3)


def test_a_size_of_frames_that_are_squares_is_no_setting(tmp_path):
    folder = folder_of("llava-onevision", tmp_path / "theirs", has_weights=False)
    with pytest.raises(UserError, match=r"config\.video\.max_pixels is 400, but this tower takes frames of 14 x 14"):
        read_recipe(load_config("base", **{"init_from": str(folder), "video.max_pixels": 400}))
