"""Whole runs on videos and recordings: stopped and gone on, on another mesh, evaluated and asked."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import small_run
from small_run import assert_same_bits, by_variables, free_port, saved, start, wait_for

from jaxmm import command, evaluate, export, generate, train
from jaxmm.errors import UserError
from jaxmm.training.run import Run

SMALL = (
    "--config.audio.width=16", "--config.audio.layers=1", "--config.audio.heads=2", "--config.audio.mlp=32",
    "--config.audio.mels=16", "--config.video.fps=2", "--config.video.max_frames=6", "--config.eval.every=0",
)  # fmt: skip

STEPS = 8


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
    pages = "\n".join(json.dumps({"text": f"{i} " + "words " * 25}) for i in range(24))
    (folder / "pages.jsonl").write_text(pages)
    info = {
        "clips": {"file_name": "clips.json", "formatting": "sharegpt", "columns": columns, "tags": tags},
        "pages": {"file_name": "pages.jsonl", "columns": {"prompt": "text"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder / "dataset_info.json"


def losses_of(workdir: Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


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
    assert train.main([*arguments, f"--workdir={workdir}", f"--config.steps={STEPS}"]) == 0
    return workdir


@pytest.mark.slow
def test_a_run_on_clips_killed_and_gone_on_in_workers_has_the_same_bits(finished, arguments, tmp_path):
    killed = start([*arguments, f"--config.steps={STEPS}", "--config.data.workers=1"], tmp_path, 8)
    wait_for(tmp_path / "checkpoints" / "2", 240)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "checkpoints" / str(STEPS)).exists(), "killed on its way"
    assert train.main([*arguments, f"--workdir={tmp_path}", f"--config.steps={STEPS}", "--config.data.workers=2"]) == 0
    assert_same_bits(saved(tmp_path, STEPS), saved(finished, STEPS))
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["data"]["media"] == "video,audio", "settled at the first start"


@pytest.mark.slow
def test_processes_of_which_one_or_none_has_clips_have_the_losses_of_one_process(arguments, tmp_path):
    few = [*arguments, "--config.data.mixture=clips:0.03,pages:0.97", "--config.steps=6", "--config.log.every=1"]
    few += ["--config.checkpoint.every=0"]
    run = Run(command.parse(few, {}).config, tmp_path / "plan")
    clips = run.corpus.names.index("clips")
    rows = [[any(piece.source == clips for piece in row) for row in run.plan.batch(k)] for k in range(6)]
    held = [any(of_batch[:4]) + any(of_batch[4:]) for of_batch in rows]
    assert {0, 1} <= set(held), "in a step no process has clips, in another one alone"

    two = [start(few, tmp_path / "two", 4, **mine) for mine in by_variables(2, free_port())]
    assert train.main([*few, f"--workdir={tmp_path / 'one'}"]) == 0
    outputs = [process.communicate(timeout=400)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    one, of_two = (losses_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 6
    np.testing.assert_allclose(of_two, one, rtol=1e-6)


@pytest.mark.slow
def test_it_goes_on_with_the_same_loss_on_every_axis_of_a_mesh(finished, arguments, tmp_path):
    mesh = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.mesh.context=2")
    assert train.main([*arguments, f"--workdir={tmp_path}", f"--config.steps={STEPS}", *mesh]) == 0
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(finished), rtol=1e-4)


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
@pytest.mark.full  # the start of a run refuses the same, below
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
    theirs, ours = saved(finished, STEPS), saved(tmp_path / "run", 1)
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
