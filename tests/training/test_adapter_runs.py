"""A run with adapters over a model's folder: its checkpoints hold what learns, and find the rest again, or say not."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy
import small_run
from made_folders import folder_of
from small_run import params_of

from jaxmm import evaluate, export, generate, train
from jaxmm.checkpoints.base import FILE, Base, keep, kept
from jaxmm.errors import UserError
from jaxmm.hf import adapter_record
from jaxmm.models.adapters import is_factor

pytestmark = pytest.mark.usefixtures("whole_transformers")
ADAPTERS = (
    "--config.adapter.rank=2", "--config.adapter.targets=q_proj,v_proj,down_proj,vision.blocks.attention",
    "--config.adapter.kind=dora", "--config.adapter.modules_to_save=connector.down", "--config.adapter.dropout=0.1",
    "--config.optimizer.name=adamw", "--config.optimizer.rate=1e-2", "--config.eval.every=0",
    "--config.eval.examples=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def arguments(qwen_vl, tmp_path_factory) -> list[str]:
    data = small_run.make_data(tmp_path_factory.mktemp("data"))
    cache = tmp_path_factory.getbasetemp() / "cache"
    return [*small_run.arguments(data, cache), small_run.SCANNED, *ADAPTERS, f"--config.init_from={qwen_vl}"]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main([*arguments, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def learnt(finished) -> dict[tuple[str, ...], np.ndarray]:
    """Its parameters, and those beneath."""
    return params_of(finished)


class Exported(NamedTuple):
    folder: Path
    said: str


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Exported:
    """Its adapters alone, as a PEFT folder."""
    out, said = tmp_path_factory.mktemp("exported") / "out", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert export.main([f"--workdir={finished}", f"--output={out}"]) == 0
    return Exported(out, said.getvalue())


def test_checkpoints_hold_what_learns_and_what_is_frozen_is_the_folders_to_the_bit(
    arguments, qwen_vl, finished, learnt
):
    saved = {name for name in small_run.saved(finished, 8) if name.startswith("params.")}
    assert {name for name in saved if ".lora." not in name} == {
        "params.connector.down.kernel", "params.connector.down.bias"
    }  # fmt: skip
    assert {name.rsplit(".lora.")[0] for name in saved if ".lora." in name} == {
        *(f"params.decoder.blocks.{one}" for one in ("attention.query", "attention.value", "mlp.down")),
        *(f"params.vision.blocks.attention.{one}" for one in ("query", "key", "value", "out")),
        "params.vision.blocks.mlp.down",  # the tower calls it down_proj, too
    }
    begun = small_run.first_params(*arguments)
    for path, x in learnt.items():
        is_learnt = is_factor(path) or path[:2] == ("connector", "down")
        assert np.array_equal(x, begun[".".join(("params", *path))]) != is_learnt, path
    noted = kept(finished)
    assert noted is not None
    assert noted.init_from == str(qwen_vl.resolve())


def test_a_run_that_stopped_and_went_on_has_the_bits_of_one_that_did_not(arguments, finished, tmp_path):
    for steps in (4, 8):
        of_steps = [*arguments, *small_run.UNSEEN, f"--config.steps={steps}"]
        assert train.main([*of_steps, f"--workdir={tmp_path / 'run'}"]) == 0
    small_run.assert_same_bits(small_run.saved(finished, 8), small_run.saved(tmp_path / "run", 8))


def test_an_export_is_the_base_with_the_adapters_merged_and_answers_as_the_run(
    arguments, finished, learnt, tmp_path, capsys
):
    out = tmp_path / "out"
    assert export.main([f"--workdir={finished}", f"--output={out}", "--merge", "--dtype=float32"]) == 0
    written = small_run.first_params(*arguments[: -len(ADAPTERS) - 1], f"--config.init_from={out}")
    assert written.keys() == {".".join(("params", *path)) for path in learnt if not is_factor(path)}
    changed = {name for name, x in written.items() if not np.array_equal(x, learnt[tuple(name.split(".")[1:])])}
    assert "params.decoder.blocks.attention.query.kernel" in changed
    assert "params.decoder.blocks.attention.key.kernel" not in changed
    capsys.readouterr()
    asked = [f"--workdir={finished}", "--prompt=Colour?", "--max_tokens=8"]
    assert generate.main(asked) == 0
    with_adapters = capsys.readouterr().out
    assert train.main([
        *arguments[: -len(ADAPTERS) - 1], f"--config.init_from={out}", "--config.steps=1", "--config.optimizer.rate=0",
        *small_run.UNSEEN, f"--workdir={tmp_path / 'still'}",
    ]) == 0  # fmt: skip
    capsys.readouterr()
    assert generate.main([f"--workdir={tmp_path / 'still'}", "--prompt=Colour?", "--max_tokens=8"]) == 0
    assert capsys.readouterr().out == with_adapters


def test_an_export_without_merge_is_the_adapters_alone_over_the_base_of_the_run(qwen_vl, learnt, exported):
    out, said = exported
    assert f"adapters (dora, ranks 2 to 6, alpha 4 to 12) of {qwen_vl.resolve()} for PEFT, of step 8" in said
    assert "vLLM needs --max-lora-rank of 6 or more, the largest rank that is written" in said
    assert "vLLM serves no adapters with DoRA and modules_to_save: for it" in said
    assert "vLLM leaves out adapters of vision, without --enable-tower-connector-lora: what it then" in said
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(qwen_vl.resolve())
    assert config["lora_dropout"] == 0.1
    assert config["modules_to_save"] == ["model.visual.merger.mlp.2"]
    tensors = safetensors.numpy.load_file(out / "adapter_model.safetensors")
    modules = {name.removeprefix("base_model.model.").rsplit(".lora_")[0] for name in tensors if ".lora_" in name}
    assert modules == set(config["target_modules"])
    assert "model.language_model.layers.2.self_attn.q_proj" in modules
    prefix = "base_model.model.model.language_model.layers.2.mlp.down_proj"
    factor = learnt["decoder", "blocks", "mlp", "down", "lora", "into"][2]
    np.testing.assert_array_equal(tensors[f"{prefix}.lora_A.weight"], factor.T)
    assert "base_model: base" in (out / "README.md").read_text()
    assert (out / "tokenizer.json").exists()


def test_an_export_says_where_adapters_alone_are_of_no_use(qwen_vl, finished, tmp_path):
    run, out = tmp_path / "run", f"--output={tmp_path / 'out'}"
    shutil.copytree(finished, run)
    keep(run, Base.find(str(finished))._replace(asked=str(qwen_vl)))
    with pytest.raises(UserError, match=r"began with the run .*finished: adapters alone .* by --merge"):
        export.main([f"--workdir={run}", out])
    (run / FILE).unlink()
    with pytest.raises(UserError, match=r"did not begin with a model's folder: .* by --merge"):
        export.main([f"--workdir={run}", out])
    none = ("rank=0", "modules_to_save=", "targets=decoder.blocks", "kind=lora", "dropout=0")
    with pytest.raises(UserError, match="has no adapters that could be merged"):
        export.main([f"--workdir={run}", out, "--merge", *(f"--config.adapter.{one}" for one in none)])


def begun_with(source: Path, arguments: list[str], *more: str) -> list[str]:
    """Arguments of a run that goes on from adapters over the same base."""
    own = ("--config.optimizer.name=adamw", "--config.optimizer.rate=1e-2", "--config.eval.every=0")
    base = arguments[-1]
    return [*arguments[: -len(ADAPTERS) - 1], *own, base, f"--config.adapter.init_from={source}", *more]


def test_a_run_goes_on_from_a_peft_folder_or_a_run_with_what_these_hold(arguments, finished, learnt, exported):
    wanted = {".".join(("params", *path)): x for path, x in learnt.items()}
    for source in (exported.folder, finished):
        small_run.assert_same_bits(small_run.first_params(*begun_with(source, arguments)), wanted)


def test_a_run_that_went_on_from_a_folder_needs_it_no_more(arguments, finished, learnt, exported, tmp_path, capsys):
    out, run = tmp_path / "out", tmp_path / "run"
    shutil.copytree(exported.folder, out)
    begin = begun_with(out, arguments, "--config.adapter.dropout=0.1", *small_run.UNSEEN)
    assert train.main([*begin, "--config.steps=2", f"--workdir={run}"]) == 0
    said = capsys.readouterr().err
    assert "adapters: dora of rank 2, alpha 4, on 8 linear maps, and connector.down" in said
    assert f"adapter.init_from: it names {kept(finished).init_from} as its base" in said
    shutil.rmtree(out)
    assert train.main([*begin, "--config.steps=4", f"--workdir={run}"]) == 0
    saved = {name for name in small_run.saved(run, 4) if name.startswith("params.")}
    assert saved == {name for name in small_run.saved(finished, 8) if name.startswith("params.")}
    params = params_of(run)
    at = ("decoder", "blocks", "mlp", "down", "lora", "out")
    assert not np.array_equal(params[at], learnt[at])
    whole = ("vision", "blocks", "mlp", "down", "kernel")
    np.testing.assert_array_equal(params[whole], learnt[whole])
    (run / adapter_record.FILE).unlink()
    with pytest.raises(UserError, match=r"run lacks adapter\.json, which says what adapters it went on from: copy the"):
        small_run.first_params(*begun_with(run, arguments))


def test_embedding_and_projection_are_adapted_exported_and_gone_on_from(arguments, tmp_path, capsys):
    own = ["--config.adapter.rank=2", "--config.adapter.targets=q_proj,embed_tokens,lm_head", "--config.steps=2"]
    plain = [one for one in arguments if "config.adapter" not in one]
    plain += ["--config.adapter.base_dtype=nf4", *small_run.UNSEEN]
    for key, value in (("kind", "dora"), ("init", "pissa")):
        with pytest.raises(UserError, match=rf"{key}={value} is of linear maps, and decoder.embedding is a"):
            train.main([*plain, *own, f"--config.adapter.{key}={value}", f"--workdir={tmp_path / 'refused'}"])
    assert train.main([*plain, *own, f"--workdir={tmp_path / 'run'}"]) == 0
    assert "on 1 linear map, the embedding and the vocabulary projection: " in capsys.readouterr().err
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    names = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name.rpartition("lora_")[2] for name in names} == {"A.weight", "B.weight", "embedding_A", "embedding_B"}
    more = [f"--config.adapter.init_from={tmp_path / 'out'}", "--config.steps=1", "--config.optimizer.rate=0"]
    assert train.main([*plain, *more, f"--workdir={tmp_path / 'more'}"]) == 0
    ours, back = params_of(tmp_path / "run"), params_of(tmp_path / "more")
    factors = [path for path in ours if is_factor(path)]
    assert ("decoder", "lora", "head", "into") in factors
    for path in factors:
        np.testing.assert_array_equal(back[path], ours[path], err_msg=".".join(path))


def test_what_is_asked_of_adapters_that_have_begun_must_be_what_they_are(arguments, qwen_vl, finished, tmp_path):
    def refused(*more: str, source: Path = finished) -> str:
        with pytest.raises(UserError) as error:
            small_run.first_params(*begun_with(source, arguments, *more))
        return str(error.value)

    assert "config.adapter.rank is 3, but the adapters in" in refused("--config.adapter.rank=3")
    assert "config.adapter.kind is rslora, but" in refused("--config.adapter.kind=rslora")
    assert "config.adapter.init=pissa is how adapters begin" in refused("--config.adapter.init=pissa")
    assert "decoder.blocks.attention.query has an adapter in" in refused("--config.adapter.targets=v_proj")
    assert "all linear maps of the decoder are decoder.blocks" in refused("--config.adapter.targets=all")
    assert "connector.down.bias is no longer that of the model beneath" in refused("--config.optimizer.freeze=*.bias")
    assert "holds no adapters: give a PEFT folder" in refused(source=tmp_path)
    assert "config.adapter.init_from needs config.init_from" in refused("--config.init_from=")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "has adapters alone: name them by config.adapter" in refused(f"--config.init_from={tmp_path}")
    other = folder_of("qwen2.5-vl", tmp_path / "other")
    tensors = safetensors.numpy.load_file(other / "model.safetensors")
    tensors["lm_head.weight"] += 1
    safetensors.numpy.save_file(tensors, other / "model.safetensors")
    assert "are of another model, that in" in refused(f"--config.init_from={other}")


def test_evaluation_reads_the_base_too_and_says_where_it_is_not(qwen_vl, finished, tmp_path, capsys):
    assert evaluate.main([f"--workdir={finished}"]) == 0
    of_run = json.loads((finished / "summary.json").read_text())["eval"]["colours"]["loss"]
    assert json.loads((finished / "eval.json").read_text())["colours"]["loss"] == pytest.approx(of_run, rel=1e-5)
    moved = tmp_path / "moved"
    shutil.move(qwen_vl, moved)
    try:
        with pytest.raises(
            UserError, match=r"holds adapters alone, and the model beneath them is not in .* any more .*--merge"
        ):
            evaluate.main([f"--workdir={finished}"])
        assert evaluate.main([f"--workdir={finished}", f"--config.init_from={moved}"]) == 0
    finally:
        shutil.move(moved, qwen_vl)


def test_adapters_of_another_model_are_refused(qwen_vl, finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(qwen_vl, other)
    tensors = safetensors.numpy.load_file(other / "model.safetensors")
    tensors["model.embed_tokens.weight" if "model.embed_tokens.weight" in tensors else next(iter(tensors))][0] += 1
    safetensors.numpy.save_file(tensors, other / "model.safetensors")
    with pytest.raises(UserError, match=r"holds adapters of another model than that in .*other"):
        evaluate.main([f"--workdir={finished}", f"--config.init_from={other}"])
    (tmp_path / "run").mkdir()
    shutil.copytree(finished, tmp_path / "run", dirs_exist_ok=True)
    (tmp_path / "run" / FILE).write_text("{}")
    with pytest.raises(UserError, match="is damaged, or of a newer version"):
        evaluate.main([f"--workdir={tmp_path / 'run'}"])
