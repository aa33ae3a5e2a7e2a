"""``encode_features`` on films and recordings as a user gives it: killed and gone on, refused, trained on, shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import small_run
from clip_folder import BAD, write_clips
from made_folders import folder_of
from test_hearing import whole_folder

from jaxmm import command, inspect, train
from jaxmm import encode_features as tool
from jaxmm.api import load_config
from jaxmm.atomic import write_json
from jaxmm.clip_spec import VideoSpec
from jaxmm.data.encoding_file import settled_otherwise
from jaxmm.encoding import writer
from jaxmm.encoding.taken import Taker
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.models.multimodal import make_model
from jaxmm.recipe import read_recipe

SMALL = (
    "--config.audio.width=24", "--config.audio.layers=1", "--config.audio.heads=2", "--config.audio.mlp=32",
    "--config.audio.mels=16", "--config.video.fps=2", "--config.video.max_frames=6", "--config.eval.every=0",
)  # fmt: skip


def train_arguments(folder: Path) -> list[str]:
    return [
        f"--config={small_run.ROOT / 'configs/base.py'}", *small_run.TINY, *SMALL, "--config.data.mixture=clips",
        f"--config.data.cache={folder / 'cache'}", "--config.data.max_skipped=0.5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Path]:
    """The folder of a run that would have been saved before its first step, beside its data."""
    folder = tmp_path_factory.mktemp("clips")
    info = write_clips(folder)
    arguments = [*train_arguments(folder), f"--config.data.path={info}", "--config.data.media=video,audio"]
    config = command.parse(arguments, {}).config
    (folder / "run").mkdir()
    write_json(folder / "run/config.json", command.to_json(config))
    params = jax.jit(make_model(read_recipe(config).model)[0])(jax.random.key(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "saved_params", lambda *_: params)
        patch.setattr(tool, "chosen_step", lambda *_: None)
        yield folder / "run"


@pytest.fixture(scope="module")
def encoded(run) -> Path:
    output = run.parent / "output"
    assert tool.main([f"--workdir={run}", f"--output={output}"]) == 0
    return output


def parts_of(output: Path) -> list[dict[str, Any]]:
    lines = (output / "clips.jsonl").read_text().splitlines()
    return [part for line in lines for turn in json.loads(line)["messages"] for part in turn["content"]]


def test_a_killed_run_goes_on_and_what_is_broken_is_left_out(run, encoded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writer, "CHUNK_DOCUMENTS", 3)
    made, calls = writer.Writer._save, []

    def killed(self, *rest):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        made(self, *rest)

    monkeypatch.setattr(writer.Writer, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        tool.main([f"--workdir={run}", f"--output={tmp_path}"])
    assert not (tmp_path / "clips.jsonl").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(kept) == 7
    capsys.readouterr()
    assert tool.main([f"--workdir={run}", f"--output={tmp_path}"]) == 0
    told = capsys.readouterr().out
    assert "8 documents, " in told
    assert " 7 kept, 1 documents left out" in told
    assert "--config.optimizer.freeze=vision,audio" in told
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in ("clips.jsonl", "clips.skipped.jsonl", "encoding.json", "dataset_info.json"):
        assert (tmp_path / name).read_bytes() == (encoded / name).read_bytes()
    for path in encoded.rglob("*.npy"):
        again = np.load(tmp_path / path.relative_to(encoded))
        np.testing.assert_allclose(again, np.load(path), rtol=1e-5, atol=1e-5)
    (skipped,) = map(json.loads, (encoded / "clips.skipped.jsonl").read_text().splitlines())
    assert skipped["record"] == BAD
    assert skipped["reason"]


def test_the_output_names_a_file_a_medium_and_how_clips_were_taken(encoded):
    parts = parts_of(encoded)
    by_type = {one["type"]: np.load(encoded / one["path"]).ndim for one in parts if one["type"] != "text"}
    assert by_type == {"video": 4, "audio": 2, "features": 3}
    assert all(one["fps"] > 0 for one in parts if one["type"] == "video")
    towers = json.loads((encoded / "encoding.json").read_text())["tower"]
    assert towers["video"]["max_frames"] == 6
    assert towers["audio"]["mels"] == 16
    assert towers["digest"] != towers["audio_digest"]


def test_settings_that_differ_are_told_and_a_foreign_file_is_not(encoded, tmp_path):
    def spec(**changes: float) -> ImageSpec:
        return ImageSpec(video=VideoSpec(fps=2, max_frames=6, max_pixels=1024, min_pixels=256, **changes))

    for path in (encoded, encoded / "dataset_info.json"):
        assert settled_otherwise(str(path), "video", spec()) == ""
        assert settled_otherwise(str(path), "video", spec(total_pixels=9000)) == "total_pixels 0"
    foreign = ['{"digest": ""}', '{"video": 5}', '{"video": "an fps"}', '{"video": null}', '["video"]']
    whole = [f'{{"tower": {tower}, "sources": {{}}}}' for tower in foreign]
    for content in ("[]", "{}", "null", "no JSON", '{"tower": {"video": 5}}', *whole):
        (tmp_path / "encoding.json").write_text(content)
        assert settled_otherwise(str(tmp_path), "video", spec(total_pixels=9000)) == ""


def test_other_settings_of_clips_do_not_mix_with_what_is_there(run, encoded):
    with pytest.raises(UserError, match="holds what another tower or setting made"):
        tool.main([f"--workdir={run}", f"--output={encoded}", "--config.video.fps=1"])


def test_another_programs_notes_are_no_place_to_write_to(run, tmp_path):
    (tmp_path / "encoding.json").write_text('{"tower": null}')
    with pytest.raises(UserError, match=r"encoding\.json is not what this command writes"):
        tool.main([f"--workdir={run}", f"--output={tmp_path}"])


def long_films(folder: Path) -> Path:
    """Films whose answers hold a special token, written as text: so they are longer than a row of 48."""
    info = write_clips(folder, ("video",))
    records = json.loads((folder / "clips.json").read_text())[:3]
    for record in records:
        record["messages"][1]["content"] = 3 * "<|end|>" + record["messages"][1]["content"]
    (folder / "clips.json").write_text(json.dumps(records))
    return info


def test_text_decides_the_frames_of_videos_and_files_with_others_are_not_kept(run, tmp_path, capsys):
    arguments = [
        f"--workdir={run}", f"--config.data.path={long_films(tmp_path)}", "--config.seq_len=48", "--config.video.fps=4",
        "--config.video.max_frames=16", "--config.video.max_pixels=1024",
    ]  # fmt: skip
    other, output, fresh = "--config.data.special_tokens=<|end|>", tmp_path / "output", tmp_path / "fresh"
    assert tool.main([*arguments, f"--output={output}"]) == 0
    with pytest.raises(UserError, match="holds what another tower or setting made"):
        tool.main([*arguments, other, f"--output={output}"])
    before = {path: np.load(path).shape for path in output.rglob("*.npy")}
    noted = json.loads((output / "encoding.json").read_text())
    del noted["tower"]["template"]  # as an older version noted it
    write_json(output / "encoding.json", noted)
    capsys.readouterr()
    assert tool.main([*arguments, other, f"--output={output}"]) == 0
    assert tool.main([*arguments, other, f"--output={fresh}"]) == 0
    longer = {path: np.load(fresh / path.relative_to(output)).shape for path in before}
    changed = sum(longer[path] != before[path] for path in before)
    assert f"{changed} videos encoded, {len(before) - changed} kept" in capsys.readouterr().out
    assert changed > 0
    assert {path: np.load(path).shape for path in before} == longer
    assert (output / "clips.jsonl").read_bytes() == (fresh / "clips.jsonl").read_bytes()
    assert json.loads((output / "encoding.json").read_text()) == json.loads((fresh / "encoding.json").read_text())


def test_what_was_encoded_goes_along_when_it_is_encoded_again(run, encoded, tmp_path):
    where = f"--config.data.path={encoded}"
    assert tool.main([f"--workdir={run}", f"--output={tmp_path}", where, "--config.data.mixture=clips"]) == 0
    for one, other in zip(parts_of(encoded), parts_of(tmp_path), strict=True):
        assert one | {"path": ""} == other | {"path": ""}
        if one["type"] != "text":
            assert (encoded / one["path"]).read_bytes() == (tmp_path / other["path"]).read_bytes()


def test_the_page_and_the_plan_show_vectors_of_clips(run, encoded, tmp_path):
    arguments = [*train_arguments(run.parent), f"--config.data.path={encoded}", "--config.data.media=video,audio"]
    assert inspect.main([*arguments, f"--output={tmp_path / 'page.html'}", "--rows=4"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert '"features"' in page
    assert '"audio_features"' in page
    assert "Features a row" in page
    assert "Audio features a row" in page


@pytest.mark.slow
def test_vectors_of_clips_train_with_the_towers_frozen_and_settings_that_do_not_count_are_told(
    run, encoded, tmp_path, capsys
):
    arguments = train_arguments(run.parent)
    info = f"--config.data.path={run.parent / 'dataset_info.json'}"
    assert train.main([*arguments, info, f"--workdir={tmp_path / 'base'}", "--config.steps=1"]) == 0
    arguments += [
        f"--config.data.path={encoded}", f"--config.init_from={tmp_path / 'base'}", "--config.video.fps=1",
        "--config.optimizer.freeze=vision,audio", "--config.steps=2",
    ]  # fmt: skip
    capsys.readouterr()
    assert train.main([*arguments, f"--workdir={tmp_path / 'run'}"]) == 0
    told = "".join(capsys.readouterr())
    assert "config.video does not count for them; they were made with fps 2.0" in told
    assert "config.audio does not count for them\n" in told
    assert json.loads((tmp_path / "run/summary.json").read_text())["examples_skipped"] == 0
    with pytest.raises(UserError, match=r"of width 24, but config\.audio\.width is 32"):
        train.main([*arguments, "--config.audio.width=32", f"--workdir={tmp_path / 'wide'}"])


def test_a_model_that_only_hears_is_encoded_by_and_its_tower_is_named(tmp_path, monkeypatch, capsys):
    folder, info = whole_folder("qwen2_audio", tmp_path / "model"), write_clips(tmp_path, ("audio",))
    config = load_config("base", init_from=str(folder), **{"data.path": str(info), "data.mixture": "clips"})
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run/config.json", command.to_json(config))
    params = jax.jit(make_model(read_recipe(config).model)[0])(jax.random.key(0))
    monkeypatch.setattr(tool, "saved_params", lambda *_: params)
    assert tool.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    told = capsys.readouterr().out
    assert "9 documents, 9 recordings encoded, 0 kept\n" in told
    assert told.endswith("--config.optimizer.freeze=audio\n")
    assert {one["type"] for one in parts_of(tmp_path / "out")} == {"text", "audio"}


TOLD = {"qwen3-vl": "this tower's inner layers", "internvl": "are cut into tiles"}


@pytest.mark.parametrize(("name", "told"), TOLD.items())
def test_towers_whose_vectors_are_not_all_are_one_line(name, told, tmp_path):
    folder = folder_of(name, tmp_path / "model", has_weights=False)
    with pytest.raises(UserError, match=told):
        tool.check_towers("run", read_recipe(load_config("base", init_from=str(folder))))


def test_media_that_the_model_does_not_take_are_one_line(tmp_path):
    folder = whole_folder("qwen2_audio", tmp_path / "model")
    where = {"data.path": str(write_clips(tmp_path)), "data.mixture": "clips"}
    config = load_config("base", init_from=str(folder), **where)
    recipe = read_recipe(config)
    tool.check_towers("run", recipe)
    (source,) = tool.raw_sources(config, recipe)
    take = Taker("clips", recipe, recipe.whole)
    with pytest.raises(UserError, match="there are pictures, which a qwen2_audio does not take"):
        take(list(source.documents()))  # type: ignore[arg-type]


def test_a_film_that_is_gone_leaves_its_document_out_and_a_recording_does_not_once_it_is_finished(tmp_path, run):
    data = tmp_path / "data"
    shutil.copytree(run.parent, data, ignore=shutil.ignore_patterns("run", "cache", "output"))
    (data / "1.mp4").unlink()
    arguments = [f"--workdir={run}", f"--output={tmp_path / 'out'}", f"--config.data.path={data / 'dataset_info.json'}"]
    assert tool.main(arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/clips.skipped.jsonl").read_text().splitlines()]
    assert (lines[0]["record"], lines[0]["reason"]) == (1, "missing")
    records = (tmp_path / "out/clips.jsonl").read_bytes()
    (data / "4.wav").unlink()
    assert tool.main(arguments) == 0
    assert (tmp_path / "out/clips.jsonl").read_bytes() == records
