"""Whole runs on videos and recordings: stopped and gone on, on another mesh, evaluated and asked."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import small_run
from small_run import assert_same_bits, saved

from jaxmm import evaluate, export, generate, train
from jaxmm.errors import UserError

SMALL = (
    "--config.audio.width=16", "--config.audio.layers=1", "--config.audio.heads=2", "--config.audio.mlp=32",
    "--config.audio.mels=16", "--config.video.fps=2", "--config.video.max_frames=6", "--config.eval.every=0",
)  # fmt: skip


def write_clips(folder: Path) -> Path:
    """A LLaMA-Factory folder: every record has a video of frames, a recording, both, or a picture too."""
    records = []
    rng = np.random.default_rng(0)
    for i in range(24):
        record: dict = {"videos": [], "audios": [], "images": []}
        said = ""
        if i % 3 != 1:
            frames = []
            for n in range(3 + i % 5):
                frames.append(f"{i}-{n}.png")
                noise = rng.integers(0, 256, (24, 32, 3), np.uint8)
                PIL.Image.fromarray(noise).save(folder / frames[-1])
            record["videos"], said = [frames], said + "<video>"
        if i % 3 != 0:
            with wave.open(str(folder / f"{i}.wav"), "wb") as writer:
                writer.setnchannels(1)
                writer.setsampwidth(2)
                writer.setframerate(16000)
                writer.writeframes((rng.normal(0, 3000, 3000 + 700 * i)).astype("<i2").tobytes())
            record["audios"], said = [f"{i}.wav"], said + "<audio>"
        if i % 4 == 0:
            PIL.Image.new("RGB", (32, 24), (i * 9, 90, 40)).save(folder / f"{i}.png")
            record["images"], said = [f"{i}.png"], said + "<image>"
        turns = [{"role": "user", "content": f"{said}What?"}, {"role": "assistant", "content": f"number {i}"}]
        records.append(record | {"messages": turns})
    (folder / "clips.json").write_text(json.dumps(records))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {name: name for name in ("messages", "images", "videos", "audios")}
    info = {"clips": {"file_name": "clips.json", "formatting": "sharegpt", "columns": columns, "tags": tags}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder / "dataset_info.json"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    info = write_clips(tmp_path_factory.mktemp("clips"))
    cache = tmp_path_factory.mktemp("cache")
    return [
        f"--config={small_run.ROOT / 'configs/base.py'}", *small_run.TINY, *SMALL, f"--config.data.cache={cache}",
        "--config.data.mixture=clips", f"--config.data.path={info}", "--config.eval.mixture=clips",
        f"--config.eval.path={info}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("whole")
    assert train.main([*arguments, f"--workdir={workdir}", "--config.steps=4"]) == 0
    return workdir


@pytest.mark.slow
def test_a_run_on_clips_stopped_and_gone_on_in_workers_has_the_same_bits(finished, arguments, tmp_path):
    assert train.main([*arguments, f"--workdir={tmp_path}", "--config.steps=2"]) == 0
    assert train.main([*arguments, f"--workdir={tmp_path}", "--config.steps=4", "--config.data.workers=2"]) == 0
    assert_same_bits(saved(tmp_path, 4), saved(finished, 4))
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["data"]["media"] == "video,audio", "settled at the first start"


@pytest.mark.slow
def test_it_goes_on_with_the_same_loss_on_every_axis_of_a_mesh(finished, arguments, tmp_path):
    mesh = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.mesh.context=2")
    assert train.main([*arguments, f"--workdir={tmp_path}", "--config.steps=4", *mesh]) == 0
    losses = [
        [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (finished, tmp_path)
    ]
    ours, theirs = (np.array([loss for loss in of_run if loss is not None]) for of_run in losses)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
def test_it_is_evaluated_asked_and_exported_in_parts(finished, arguments, tmp_path, capsys):
    assert evaluate.main([f"--workdir={finished}"]) == 0
    clip = next(Path(arguments[-1].partition("=")[2]).parent.glob("*.wav"))
    assert generate.main([f"--workdir={finished}", f"--audio={clip}", "--prompt=What?", "--max_tokens=2"]) == 0
    capsys.readouterr()
    assert export.main([f"--workdir={finished}", f"--output={tmp_path / 'parts'}"]) == 0
    assert "transformers has no class for a model from random weights that takes videos" in capsys.readouterr().out
    parts = {path.stem for path in (tmp_path / "parts").glob("*.safetensors")}
    assert parts == {"vision", "connector", "audio", "audio_connector", "decoder"}


@pytest.mark.slow
def test_a_model_that_was_trained_on_other_media_says_so(arguments, tmp_path):
    """Its towers are settled at its first start."""
    pages = tmp_path / "pages.jsonl"
    pages.write_text("\n".join(json.dumps({"text": f"{i} " + "words " * 9}) for i in range(8)))
    changed = [
        a for a in arguments if not a.startswith(("--config.data.path", "--config.data.mixture", "--config.eval."))
    ]
    changed += [f"--config.data.path={pages}", "--config.eval.every=0"]
    assert train.main([*changed, f"--workdir={tmp_path / 'run'}", "--config.steps=2"]) == 0
    with pytest.raises(UserError, match="which this model does not take here"):
        evaluate.main([f"--workdir={tmp_path / 'run'}", *arguments[-2:]])


@pytest.mark.slow
def test_a_run_begins_as_the_model_of_another_has_its_towers_whatever_its_data_has(finished, arguments, tmp_path):
    """Its data has pictures alone."""
    info = json.loads((small_run.make_data(tmp_path) / "dataset_info.json").read_text())
    (tmp_path / "dataset_info.json").write_text(json.dumps({"colours": info["colours"]}))
    changed = [a for a in arguments if not a.startswith(("--config.data.path", "--config.data.mix", "--config.eval."))]
    changed += [f"--config.data.path={tmp_path}", "--config.data.mixture=colours", f"--config.init_from={finished}"]
    still = ["--config.steps=1", "--config.optimizer.rate=0.0"]
    assert train.main([*changed, *still, f"--workdir={tmp_path / 'run'}"]) == 0
    theirs, ours = saved(finished, 4), saved(tmp_path / "run", 1)
    names = [name for name in ours if name.startswith("params.")]
    assert any(name.startswith("params.audio.") for name in names)
    assert_same_bits({name: theirs[name] for name in theirs if name.startswith("params.")}, {n: ours[n] for n in names})
    kept = json.loads((tmp_path / "run/config.json").read_text())
    assert kept["data"]["media"] == "video,audio", "so that it goes on and is evaluated without the other run"


def test_data_of_kinds_that_the_model_of_another_run_lacks_is_refused(arguments, tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    (first / "config.json").write_text(json.dumps({"data": {"media": "video"}}))
    on = [*arguments, f"--config.init_from={first}", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"the data has recordings, which .*config\.data\.media is 'video'"):
        train.main(on)
    with pytest.raises(UserError, match=r"config\.data\.media is 'audio', but .* was made for 'video': leave"):
        train.main([*on, "--config.data.media=audio"])
