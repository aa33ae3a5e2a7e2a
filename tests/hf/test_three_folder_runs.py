"""Whole runs of a model joined from three folders: stopped and gone on, asked, followed by another and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hf.test_hearing import where
from hf.test_three_folders import named, picture, read, recording, write_folders
from small_run import ROOT, assert_same_bits, saved

from jaxmm import evaluate, export, generate, train
from jaxmm.hf.pretrained import read_params

pytestmark = pytest.mark.usefixtures("whole_transformers")


def write_data(folder: Path) -> list[str]:
    """Flags of ``train`` for conversations with a picture, a recording, both in either order, or neither."""
    folder.mkdir()
    records = []
    for i in range(16):
        for ending, part in (("png", picture(i % 3)), ("wav", recording(i % 3))):
            (folder / f"{i}.{ending}").write_bytes(part.data)
        said = ["<audio>a<image>What?", "<image>What?<audio>", "<audio>What?", "<image>What?", "What?"][i % 5]
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": f"number {i}"}]
        media = {"images": [f"{i}.png"] * ("<image>" in said), "audios": [f"{i}.wav"] * ("<audio>" in said)}
        records.append({"messages": turns, **media})
    (folder / "data.json").write_text(json.dumps(records))
    return [
        f"--config={ROOT / 'configs/base.py'}", f"--config.data.path={folder / 'data.json'}",
        f"--config.data.cache={folder / 'cache'}", "--config.seq_len=256", "--config.batch_size=8",
        "--config.connector.mlp=40", "--config.compute.unroll=1",
        "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2",
        "--config.eval.every=0", "--config.checkpoint.every=2", "--config.log.every=1",
        "--config.log.tensorboard=False", "--config.optimizer.warmup=1", "--config.optimizer.schedule=constant",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_is_stopped_and_gone_on_asked_followed_and_exported_without_the_folders(tmp_path, capsys):
    moved = tmp_path / "folders"
    write_folders(moved, "siglip2_vision_model", "qwen3_asr_encoder")
    flags = write_data(tmp_path / "data")
    first = [*flags, f"--config.init_from={named(moved, 'audio', 'vision', 'decoder')}"]
    whole, stopped, following = (tmp_path / name for name in ("whole", "stopped", "following"))
    assert train.main([*first, f"--workdir={whole}", "--config.steps=4"]) == 0
    assert train.main([*first, f"--workdir={stopped}", "--config.steps=2"]) == 0
    shutil.rmtree(moved)
    assert train.main([*first, f"--workdir={stopped}", "--config.steps=4"]) == 0
    assert_same_bits(saved(stopped, 4), saved(whole, 4))
    assert evaluate.main([f"--workdir={whole}", f"--config.eval.path={tmp_path / 'data/data.json'}"]) == 0
    media = [f"--image={tmp_path / 'data/0.png'}", f"--audio={tmp_path / 'data/2.wav'}"]
    assert generate.main([f"--workdir={whole}", *media, "--prompt=What?", "--max_tokens=2"]) == 0
    only = "--config.optimizer.freeze=vision,audio,decoder"
    after = [*flags, only, f"--config.init_from={whole}", f"--workdir={following}", "--config.steps=2"]
    assert train.main(after) == 0
    before, trained = saved(whole, 4), saved(following, 2)
    changed = {
        name.split(".")[1]
        for name in trained
        if name.startswith("params.") and not np.array_equal(trained[name], before[name])
    }
    assert changed == {"connector", "audio_connector"}
    capsys.readouterr()
    assert export.main([f"--workdir={following}", f"--output={tmp_path / 'out'}"]) == 0
    assert "transformers has no class for a" in capsys.readouterr().out
    again = read(named(tmp_path / "out", "vision", "audio", "decoder"))
    for path in read_params(again.recipe.start, where).params:
        np.testing.assert_array_equal(again.params[path], trained[".".join(("params", *path))])
