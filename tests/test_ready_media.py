"""Training on ready-made media, end to end: image tokens that are predicted, feature vectors for a frozen tower's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxmm import export, generate, train
from jaxmm import inspect as tool
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError

ROOT = Path(__file__).parents[1]
WIDTH = 16
TINY = (
    f"--config={ROOT / 'configs/base.py'}", "--config.batch_size=4", "--config.seq_len=96", "--config.steps=4",
    "--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=4",
    "--config.image.min_pixels=256", "--config.image.max_pixels=1024", f"--config.vision.width={WIDTH}",
    "--config.vision.layers=1", "--config.vision.heads=4", "--config.vision.mlp=32", "--config.connector.mlp=32",
    "--config.decoder.width=32", "--config.decoder.layers=1", "--config.decoder.heads=4",
    "--config.decoder.kv_heads=4", "--config.decoder.head_dim=16", "--config.decoder.mlp=64", "--config.log.every=2",
    "--config.log.tensorboard=False", "--config.optimizer.warmup=2",
)  # fmt: skip


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("whole_transformers")
def test_image_tokens_are_learnt_and_their_loss_is_told_apart(tmp_path, capsys):
    records = [
        {"messages": [
            {"role": "user", "content": [{"type": "image_tokens", "ids": [i % 8, 1]}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "So:"}, {"type": "image_tokens", "ids": [5, 6, i % 8, 7]},
            ]},
        ]}
        for i in range(40)
    ]  # fmt: skip
    (tmp_path / "drawn.json").write_text(json.dumps(records))
    arguments = [
        *TINY, f"--config.data.path={tmp_path / 'drawn.json'}", f"--config.data.cache={tmp_path / 'cache'}",
        "--config.data.image_tokens=8", f"--config.eval.path={tmp_path / 'drawn.json'}",
    ]  # fmt: skip
    assert train.main([*arguments, "--config.data.predict_image_tokens=True", f"--workdir={tmp_path / 'run'}"]) == 0
    for line in lines(tmp_path / "run"):
        if "loss" not in line:
            continue
        told = line["modalities"]
        assert set(told) == {"text", "image_tokens"}
        total = sum(one["loss"] * one["targets"] for one in told.values())
        targets = sum(one["targets"] for one in told.values())
        assert total / targets == pytest.approx(line["loss"], rel=1e-5)
        assert targets == line["sources"]["drawn"]["targets"]
        assert told["image_tokens"]["targets"] == told["text"]["targets"]  # "So:" and the end, and four tokens
    assert generate.main([f"--workdir={tmp_path / 'run'}", "--prompt=?", "--max_tokens=8"]) == 0
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    codes = tokenizer.convert_tokens_to_ids([f"<|image_code_{n}|>" for n in range(8)])
    assert codes == list(range(codes[0], codes[0] + 8))
    assert config["image_token_id"] == tokenizer.convert_tokens_to_ids("<image>") == codes[0] + 8
    on = [*arguments, "--config.data.predict_image_tokens=True", f"--config.init_from={tmp_path / 'out'}"]
    assert train.main([*on, "--config.steps=1", "--config.log.every=1", f"--workdir={tmp_path / 'on'}"]) == 0
    last = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line][-1]
    (first,) = (line["loss"] for line in lines(tmp_path / "on") if "loss" in line)
    assert first == pytest.approx(last, rel=0.1), "the codebook is where it was"
    assert train.main([*arguments, f"--workdir={tmp_path / 'read'}"]) == 0
    assert all("modalities" not in line for line in lines(tmp_path / "read"))
    with pytest.raises(UserError, match=r"the image token 5, but config\.data\.image_tokens is 5"):
        train.main([*arguments, "--config.data.image_tokens=5", f"--workdir={tmp_path / 'small'}"])


@pytest.mark.slow
def test_feature_vectors_train_beside_images_and_another_width_is_one_line(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for i in range(24):
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(2, 4, WIDTH)).astype(np.float16))
        turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": f"{i}"}]
        records.append({"messages": turns, "features": [f"{i}.npy"]})
    (tmp_path / "ready.jsonl").write_text("\n".join(map(json.dumps, records)))
    arguments = [
        *TINY, f"--config.data.path={tmp_path / 'ready.jsonl'}", f"--config.data.cache={tmp_path / 'cache'}",
        "--config.optimizer.freeze=vision", f"--config.eval.path={tmp_path / 'ready.jsonl'}",
    ]  # fmt: skip
    assert train.main([*arguments, f"--workdir={tmp_path / 'run'}", "--config.data.workers=1"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["images_per_second"] > 0
    assert summary["eval"]["ready"]["answers"] == 24
    with pytest.raises(UserError, match=r"ready has feature vectors of width 16, but config\.vision\.width is 32"):
        train.main([*arguments, "--config.vision.width=32", f"--workdir={tmp_path / 'wide'}"])


def test_the_page_and_the_plan_of_ready_made_media_are_shown(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((2, 4, WIDTH), np.float32))
    records = [{"text": "<image>one", "features": ["a.npy"]}, {"text": "<image>two", "image_tokens": [[1, 2, 3]]}]
    (tmp_path / "ready.jsonl").write_text("\n".join(map(json.dumps, records)))
    arguments = [
        *TINY, f"--config.data.path={tmp_path / 'ready.jsonl'}", f"--config.data.cache={tmp_path / 'cache'}",
        "--config.data.image_tokens=8",
    ]  # fmt: skip
    assert tool.main([*arguments, f"--output={tmp_path / 'page.html'}", "--rows=4"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "3 image tokens: 1 2 3" in page
    assert '"features"' in page
    assert "Features a row" in page
    capsys.readouterr()
    assert tool.main([*arguments, "--batches=0:1"]) == 0
    assert json.loads(capsys.readouterr().out)["patches"] == 0
