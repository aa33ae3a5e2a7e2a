"""The Python face: what is there, that importing it costs nothing, and that it gives what the commands have."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import made_folders
import numpy as np
import optax
import PIL.Image
import pytest
import small_run
from conftest import picture

import jaxmm
from jaxmm import command, generate
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.errors import UserError
from jaxmm.models.multimodal import flat_axes
from jaxmm.models.tree import nested

pytestmark = pytest.mark.usefixtures("whole_transformers")


@pytest.fixture(scope="module")
def changes(tmp_path_factory) -> dict:
    """What makes base.py a tiny run of 2 steps on two sources."""
    data = small_run.make_data(tmp_path_factory.mktemp("data"))
    arguments = [*small_run.arguments(data, tmp_path_factory.mktemp("cache")), "--config.steps=2"]
    return command.parse(arguments, {}).config.to_dict()


def drawn_params(model: jaxmm.Model) -> dict:
    """Parameters by NumPy, for which nothing is compiled."""
    rng, params = np.random.default_rng(1), {}
    for path, (shape, _) in flat_axes(model.recipe.model).items():
        params[path] = jax.numpy.asarray(0.3 * rng.standard_normal(shape, np.float32) + float(path[-1] == "scale"))
    return nested(params)


@pytest.fixture(scope="module")
def workdir(changes, tmp_path_factory) -> Path:
    """Of such a run, with a checkpoint of parameters that nobody has trained."""
    folder, config = tmp_path_factory.mktemp("run"), jaxmm.load_config("base", **changes)
    (folder / "config.json").write_text(json.dumps(command.to_json(config)))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(2, {"params": drawn_params(jaxmm.make_model(config))}, {"position": 2})
        checkpoints.wait()
    return folder


def test_importing_jaxmm_imports_nothing_large_and_names_come_when_asked_for():
    code = (
        "import sys; before = set(sys.modules); import jaxmm; new = set(sys.modules) - before;"
        "assert all(name.split('.')[0] in ('jaxmm', *sys.stdlib_module_names) for name in new), new;"
        "assert not {name for name in new if name.startswith('jaxmm.')};"
        "assert set(jaxmm.__all__) <= set(dir(jaxmm)); jaxmm.UserError; assert 'jax' not in sys.modules;"
        "assert all(callable(getattr(jaxmm, name)) for name in jaxmm.__all__); assert 'jax' in sys.modules"
    )
    env = os.environ | {"PYTHONPATH": str(small_run.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_name_is_documented_and_an_unknown_one_lists_them():
    for name in jaxmm.__all__:
        assert getattr(jaxmm, name).__doc__, name
    with pytest.raises(AttributeError, match="jaxmm has no batch_iterator; it has Batch, Model, "):
        jaxmm.batch_iterator  # noqa: B018


def test_a_config_is_loaded_by_name_path_or_workdir_and_changed_by_key_or_group(workdir, tmp_path, monkeypatch):
    config = jaxmm.load_config("base", steps=7, **{"optimizer.rate": 1}, decoder={"layers": 2})
    assert (config.steps, config.optimizer.rate, config.decoder.layers, config.batch_size) == (7, 1.0, 2, 8)
    assert isinstance(config.optimizer.rate, float)
    assert jaxmm.load_config(small_run.ROOT / "configs/base.py").steps == 560
    assert jaxmm.load_config(workdir).steps == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert jaxmm.load_config("base").steps == 560  # a folder of that name does not hide it
    with pytest.raises(AttributeError):
        config.stepz = 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bass", {}, "no config 'bass' comes with jaxmm; did you mean 'base'?"),
        ("base", {"learning_rate": 1e-3}, "unknown config key 'learning_rate': use config.optimizer.rate"),
        ("base", {"optimizer": {"ratee": 1}}, "unknown config key 'optimizer.ratee'; did you mean 'optimizer.rate'?"),
        ("base", {"optimizer": 1}, "'optimizer'; it is a group of keys"),
        ("base", {"optimizer.rate": "1e-3"}, "optimizer.rate is '1e-3', not a finite number"),
        ("base", {"optimizer.rate": -1}, "config.optimizer.rate is -1.0: it must be"),
        ("base", {"batch_size": 8, "accumulation": 3}, "no multiple of config.accumulation 3"),
    ],
)
def test_a_wrong_config_is_one_line(name, changes, message):
    with pytest.raises(UserError) as error:
        jaxmm.load_config(name, **changes)
    assert message in str(error.value)


def test_a_config_that_was_changed_since_is_checked_again(changes):
    config = jaxmm.load_config("base", **changes)
    config.optimizer.rate = -1.0
    for ask in (jaxmm.batches, jaxmm.make_plan, jaxmm.make_model):
        with pytest.raises(UserError, match=r"config.optimizer.rate is -1.0: it must be"):
            ask(config)
        with pytest.raises(UserError, match=r"a config is wanted, not 'base': jaxmm.load_config\('base'\) gives one"):
            ask("base")


def test_batches_are_those_of_the_plan_and_of_any_start(changes):
    config = jaxmm.load_config("base", **changes)
    plan = jaxmm.make_plan(config)
    found = list(jaxmm.batches(config))
    assert len(found) == config.steps
    assert all(isinstance(batch, jaxmm.Batch) for batch in found)
    (later,) = jaxmm.batches(config, 1)
    for ours, theirs in zip(jax.tree.leaves(found[1]), jax.tree.leaves(later), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(found[0].text.values, found[1].text.values)
    for number, batch in enumerate(found):
        rows = [sum(piece.last - piece.first for piece in row) for row in plan.batch(number)]
        assert (batch.text.segments > 0).sum(1).tolist() == rows
        assert batch.text.values.shape == (config.batch_size, plan.budgets.tokens)


def test_batches_that_there_are_not_are_one_line(changes):
    config = jaxmm.load_config("base", **changes)
    with pytest.raises(UserError, match="start must be 0 or above, and at most stop"):
        jaxmm.batches(config, 3, 2)
    config.epochs = 1.0
    with pytest.raises(UserError, match=r"batches 0 to 999: the plan ends after \d+"):
        jaxmm.batches(config, 0, 999)


def test_what_a_batch_lacks_is_told(changes, tmp_path, capsys):
    records = [{"text": f"<image>{i}", "image": f"{i}.png"} for i in range(8)]
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(picture(24, 24, i).data[: 90 if i == 3 else None])
    (tmp_path / "pages.jsonl").write_text("\n".join(map(json.dumps, records)))
    wanted = {
        "data.path": str(tmp_path / "pages.jsonl"),
        "data.objective": "pretrain",
        "eval.path": "",
        "eval.mixture": "",
    }
    config = jaxmm.load_config("base", **{**changes, "data": {**changes["data"], "mixture": ""}, **wanted})
    list(jaxmm.batches(config, 0, 2))
    told = "batch 0 is without pages.jsonl, record 3: an image's file ends early: download or write it again\n"
    assert capsys.readouterr().err == told


def test_a_loop_of_ones_own_has_the_loss_that_the_logits_have_and_it_falls(changes):
    config = jaxmm.load_config("base", **changes)
    model, plan = jaxmm.make_model(config), jaxmm.make_plan(config)
    params = drawn_params(model)
    assert jax.tree.map(jax.numpy.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, jax.eval_shape(model.init, jax.random.key(0))
    )
    (batch,) = jaxmm.batches(config, 0, 1)

    @jax.jit  # at once: what they share is computed once
    def all_of(params, batch):
        loss_and_grads = jax.value_and_grad(model.loss)(params, batch, target_budget=plan.budgets.targets)
        return *loss_and_grads, model.loss(params, batch), model.apply(params, batch)

    first, grads, without_budget, (hidden_BTD, head_VD) = all_of(params, batch)
    np.testing.assert_allclose(first, without_budget, rtol=1e-5)
    logits = np.asarray(hidden_BTD, np.float64) @ np.asarray(head_VD, np.float64).T
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, batch.targets_BT[..., None], -1)[..., 0]
    np.testing.assert_allclose(first, (nll * batch.weights_BT).sum() / batch.weights_BT.sum(), rtol=1e-4)
    optimizer = optax.sgd(0.01)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert all_of(optax.apply_updates(params, updates), batch)[0] < first


def test_a_run_answers_as_generate_does(workdir, tmp_path, capsys):
    model = jaxmm.load(workdir)
    path = tmp_path / "a.png"
    path.write_bytes(picture(20, 30).data)
    capsys.readouterr()
    generate.main([f"--workdir={workdir}", f"--image={path}", "--prompt=Colour?", "--max_tokens=8"])
    told = capsys.readouterr().out.removesuffix("\n")
    opened = PIL.Image.open(path)
    for one in (path, str(path), path.read_bytes(), opened, [path]):
        assert model.answer(one, "Colour?", max_tokens=8) == told
    generate.main([f"--workdir={workdir}", "--prompt=Colour?", "--max_tokens=8", "--temperature=2", "--seed=3"])
    drawn = model.answer(text="Colour?", max_tokens=8, temperature=2.0, seed=3)
    assert drawn == capsys.readouterr().out.removesuffix("\n")
    generate.main([f"--workdir={workdir}", f"--image={path},{path}", "--max_tokens=8"])
    assert model.answer([path, opened], max_tokens=8) == capsys.readouterr().out.removesuffix("\n")
    older = jaxmm.load(workdir, "2")
    assert older.answer(path, "Colour?", max_tokens=8) == told
    elsewhere = shutil.copytree(workdir, tmp_path / "of_a_gpu")
    config = json.loads((elsewhere / "config.json").read_text())
    config["compute"]["attention"] = "fused"
    (elsewhere / "config.json").write_text(json.dumps(config))
    assert jaxmm.load(elsewhere).answer(path, "Colour?", max_tokens=8) == told, "attention is what is best here"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_a_picture_of_any_mode_is_taken(mode):
    from jaxmm.inference.prompts import _png

    made = PIL.Image.new("RGB", (8, 6), (200, 10, 10)).convert("L" if mode in ("LA", "I;16") else mode)
    made = made.convert(mode) if mode != "I;16" else PIL.Image.fromarray(np.asarray(made).astype(np.uint16) * 257)
    again = PIL.Image.open(io.BytesIO(_png(made)))
    assert again.size == (8, 6)
    assert again.mode == ("RGB" if mode in ("CMYK", "F") else mode)


def test_an_open_picture_is_turned_as_its_file_is():
    from jaxmm.inference.prompts import _png

    file, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (8, 6)).save(file, "JPEG", exif=exif)
    assert PIL.Image.open(io.BytesIO(_png(PIL.Image.open(file)))).size == (6, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to answer: give a picture, a text or both"),
        ({"image": "none.png"}, "picture none.png: there is no such file"),
        ({"image": 3}, "picture: give a path or bytes or a PIL image, not a int"),
        ({"image": [b"no picture"]}, "the image given as bytes cannot be used: unreadable; an image's bytes are no "),
        ({"text": "a", "max_tokens": 0}, "max_tokens is 0: it must be at least 1"),
        ({"text": "a", "top_k": 3}, "top_k chooses what is drawn from: it needs a temperature above 0"),
    ],
)
def test_what_cannot_be_answered_is_one_line(workdir, arguments, message):
    with pytest.raises(UserError) as error:
        jaxmm.load(workdir).answer(**arguments)
    assert str(error.value).startswith(message)


def test_what_is_no_model_is_one_line(workdir, tmp_path):
    with pytest.raises(UserError, match=r"holds no run: there is no config.json in it"):
        jaxmm.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        jaxmm.load(tmp_path / "none")
    with pytest.raises(UserError, match="step 'newst' is no checkpoint"):
        jaxmm.load(workdir, "newst")


@pytest.mark.slow
def test_a_hugging_face_folder_answers_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = made_folders.folder_of("qwen2.5-vl", tmp_path / "whole")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    model = jaxmm.load(folder)
    assert isinstance(model.answer(PIL.Image.new("RGB", (32, 32)), "Colour?", max_tokens=4), str)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="is a model's folder, which has no step 3"):
        jaxmm.load(folder, 3)


def test_attention_by_itself_leaks_nothing():
    segments = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    q, k, v = (np.random.default_rng(i).standard_normal((1, 6, 2, 8)).astype(np.float32) for i in range(3))

    @jax.jit
    def attend(q, k, v, segments):
        both = jaxmm.bidirectional(segments)
        return jaxmm.attention(q, k, v, jaxmm.causal(segments)), jaxmm.attention(q, k, v, both)

    out, both = attend(q, k, v, segments)
    changed = [np.where(segments[..., None, None] == 1, x + 1, x) for x in (q, k, v)]
    np.testing.assert_array_equal(attend(*changed, segments)[0][:, 3:5], out[:, 3:5])
    np.testing.assert_array_equal(out[:, 5], 0)
    np.testing.assert_allclose(out[:, 0], v[:, 0], atol=1e-5)
    assert np.abs(np.asarray(both)[:, 0] - v[:, 0]).max() > 0.01
