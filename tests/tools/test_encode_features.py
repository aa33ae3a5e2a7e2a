"""Encoding once: training on the vectors is training beside the live frozen tower, and a killed run goes on."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import picture

from jaxmm import command, sharding, train
from jaxmm import encode_features as tool
from jaxmm.checkpoints.params import saved_params
from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.plan import Budgets, Plan
from jaxmm.encoding import writer
from jaxmm.errors import UserError
from jaxmm.models.multimodal import make_model
from jaxmm.recipe import read_recipe, train_corpus
from jaxmm.training.loss import batch_loss

ROOT = Path(__file__).parents[2]
TINY = (
    f"--config={ROOT / 'configs/base.py'}", "--config.batch_size=4", "--config.seq_len=96", "--config.steps=2",
    "--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=4",
    "--config.image.min_pixels=256", "--config.image.max_pixels=1024", "--config.vision.width=16",
    "--config.vision.layers=1", "--config.vision.heads=4", "--config.vision.mlp=32", "--config.connector.mlp=32",
    "--config.decoder.width=32", "--config.decoder.layers=1", "--config.decoder.heads=4",
    "--config.decoder.kv_heads=4", "--config.decoder.head_dim=16", "--config.decoder.mlp=64", "--config.log.every=2",
    "--config.log.tensorboard=False", "--config.optimizer.warmup=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder, beside its data: chats and pages with images of many sizes, one of them broken."""
    folder = tmp_path_factory.mktemp("encoded")
    rng = np.random.default_rng(0)
    chats, pages = [], []
    for i in range(24):
        data = picture(*rng.integers(10, 60, 2).tolist(), seed=i).data
        (folder / f"{i}.png").write_bytes(data if i != 7 else data[: len(data) // 2])
        turns = [{"role": "user", "content": f"<image>question {i}"}, {"role": "assistant", "content": "é" * (i % 5)}]
        chats.append({"messages": turns, "images": [f"{i}.png"]})
    for i in range(12):
        pages.append({"text": f"page {i}<image>" + "word " * (i % 4) + "<image>", "images": [f"{i + 9}.png", "0.png"]})
    pages[3] = {"text": "only <text>"}
    (folder / "chats.json").write_text(json.dumps(chats))
    (folder / "pages.json").write_text(json.dumps(pages))
    info = {
        "chats": {"file_name": "chats.json", "formatting": "openai", "columns": {"images": "images"}},
        "pages": {"file_name": "pages.json", "columns": {"prompt": "text", "images": "images"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    where = [f"--config.data.path={folder / 'dataset_info.json'}", f"--config.data.cache={folder / 'cache'}"]
    workdir = folder / "run"
    assert train.main([*TINY, *where, "--config.data.mixture=chats:1,pages:1", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def encoded(run) -> Path:
    output = run.parent / "output"
    assert tool.main([f"--workdir={run}", f"--output={output}"]) == 0
    return output


def loss_and_gradients(recipe: Any, params: Any, batch: Any, budget: int) -> Any:
    _, apply = make_model(recipe.model)
    trained = {part: params[part] for part in ("connector", "decoder")}

    def loss(trained):
        hidden_at = functools.partial(apply, {**params, **trained}, batch, recipe.compute)
        return batch_loss(hidden_at, batch, budget, 1e-4)[0] / batch.weights_BT.sum()

    return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(trained))


@pytest.mark.slow
def test_training_on_vectors_is_training_beside_the_live_frozen_tower(run, encoded):
    config = command.parse([f"--workdir={run}"], {"workdir": ("", "")}, config="workdir").config
    recipe = read_recipe(config)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    live = train_corpus(config, recipe)
    with config.unlocked():
        config.data.path = str(encoded)
    ready = train_corpus(config, recipe)
    assert [len(source) for source in ready.lengths] == [23, 12]  # the broken image's document is not there
    # The live one has the broken image's document still, which shows when it is decoded.
    for one, other in zip(live.lengths, ready.lengths, strict=True):
        records = [one.prepared.read(e) for e in range(len(one))]
        texts = [r.tokens.tolist() for r in records if r.origin != "chats.json, record 7"]
        assert [other.prepared.read(e).tokens.tolist() for e in range(len(other))] == texts
    with jax.set_mesh(mesh):
        params = saved_params(run, recipe, mesh)
        budgets = Budgets(tokens=96, patches=96, items=24, targets=96)
        # Of pages, which have no broken image, the plan is the same to the row.
        plans = [
            Plan([source], [1], limits, 4, 0)
            for source, limits in ((live.lengths[1], budgets), (ready.lengths[1], budgets._replace(features=96)))
        ]
        for k in range(3):
            rows = plans[0].batch(k)
            assert plans[1].batch(k) == rows
            batches = [
                Assembler([corpus.lengths[1]], plan.budgets, recipe.image)(rows).batch
                for corpus, plan in zip((live, ready), plans, strict=True)
            ]
            assert batches[0].features is None
            assert not batches[1].patches.segments.any()
            (loss, gradients), (other, others) = (loss_and_gradients(recipe, params, b, 96) for b in batches)
            assert other == pytest.approx(loss, rel=1e-5)
            assert loss > 0
            for part, tree in gradients.items():
                norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))
                gap = np.sqrt(
                    sum(((x - y) ** 2).sum() for x, y in zip(*map(jax.tree.leaves, (tree, others[part])), strict=True))
                )
                assert norm > 0
                assert gap < 1e-5 * norm, part


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(run, encoded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writer, "CHUNK_DOCUMENTS", 5)
    arguments = [f"--workdir={run}", f"--output={tmp_path}"]
    made = writer.Writer._write_chunk
    calls = []

    def killed(self, *rest):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return made(self, *rest)

    monkeypatch.setattr(writer.Writer, "_write_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        tool.main(arguments)
    assert not (tmp_path / "chats.jsonl").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(kept) == 9  # of ten, as one is broken
    capsys.readouterr()
    assert tool.main(arguments) == 0
    assert "36 images encoded, 9 kept, 1 documents left out" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found, wanted = contents(tmp_path), contents(encoded)
    assert found.keys() == wanted.keys()
    for name, content in wanted.items():
        if name.endswith(".npy"):  # encoded beside other images: equal but for the order of sums
            np.testing.assert_allclose(np.load(tmp_path / name), np.load(encoded / name), rtol=1e-5, atol=1e-5)
        else:
            assert found[name] == content, name
    assert json.loads(found["chats.skipped.jsonl"]) == {"file": "chats.json", "record": 7, "reason": "truncated"}


def test_another_tower_or_other_data_do_not_mix_with_what_is_there(run, encoded, tmp_path):
    with pytest.raises(UserError, match="holds what another tower or setting made"):
        tool.main([f"--workdir={run}", f"--output={encoded}", "--dtype=float16"])
    with pytest.raises(UserError, match="is prepared: give the raw data"):
        tool.main([f"--workdir={run}", f"--output={tmp_path}", f"--config.data.path={run.parent / 'cache/prepared'}"])
    data = run.parent / "pages.json"
    before = data.read_bytes()
    try:
        data.write_bytes(before + b"\n")
        with pytest.raises(UserError, match="holds 'pages' as it was"):
            tool.main([f"--workdir={run}", f"--output={encoded}"])
    finally:
        data.write_bytes(before)


@pytest.mark.slow
def test_what_was_encoded_trains_with_the_tower_frozen(run, encoded, tmp_path):
    arguments = [
        *TINY, f"--config.data.path={encoded}", "--config.data.mixture=chats,pages", f"--config.init_from={run}",
        "--config.optimizer.freeze=vision", f"--config.data.cache={run.parent / 'cache'}", f"--workdir={tmp_path}",
    ]  # fmt: skip
    assert train.main(arguments) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["examples_skipped"] == 0


def test_preferences_are_refused_since_their_other_answer_would_be_lost():
    """Records with ready-made features have no place for it."""
    parsed = command.parse(["--config=base", "--config.objective=dpo"], {})
    with pytest.raises(UserError, match=r"config\.objective=dpo: preferences are not written with ready-made features"):
        tool.raw_sources(parsed.config, read_recipe(parsed.config))
