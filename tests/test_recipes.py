"""The configs that users start from: at their true sizes by their shapes, and small ones trained from end to end.

Those that go on with a whole model are trained in ``hf/test_families.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import made_folders
import numpy as np
import pytest
import released_configs
import safetensors.numpy
import small_run

from jaxmm import command, export, sharding, train
from jaxmm.data.demos import DEMOS
from jaxmm.data.packing.limits import Budgets
from jaxmm.models.multimodal import flat_axes
from jaxmm.recipe import read_recipe

CONFIGS = small_run.ROOT / "configs"
QWEN3_1_7B = released_configs.QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144}
PARTS = {"tower": released_configs.SIGLIP2, "small": released_configs.QWEN3, "large": QWEN3_1_7B}
INTERNVL3_8B = released_configs.INTERNVL3 | {  # its decoder is of Qwen 2.5 7B's sizes
    "text_config": released_configs.INTERNVL3["text_config"] | {  # type: ignore[operator]
        "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_VL_8B = released_configs.QWEN3_VL | {
    "text_config": released_configs.QWEN3_VL["text_config"] | {  # type: ignore[operator]
        "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False,
    },
    "tie_word_embeddings": False,
    "vision_config": released_configs.QWEN3_VL["vision_config"] | {  # type: ignore[operator]
        "deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_size": 1152, "intermediate_size": 4304,
        "out_hidden_size": 4096,
    },
}  # fmt: skip
WHOLE = {
    "llava": released_configs.LLAVA, "qwen": released_configs.QWEN2_5_VL, "qwen3": released_configs.QWEN3_VL,
    "qwen3_5": released_configs.QWEN3_5, "qwen3_moe": released_configs.QWEN3_VL_MOE, "qwen3_8b": QWEN3_VL_8B,
    "gemma": released_configs.GEMMA3, "gemma4": released_configs.GEMMA4, "intern": INTERNVL3_8B,
    "paligemma2": released_configs.PALIGEMMA2, "paddleocr": released_configs.PADDLEOCR_VL,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("whole_transformers")


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """Folders with the configs of the releases, and a tokenizer, without weights."""
    root = tmp_path_factory.mktemp("released")
    for name, config in (PARTS | WHOLE).items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
        made_folders.byte_level_tokenizer(str(config["model_type"])).save_pretrained(root / name)
    return root


def test_each_config_is_one_of_the_recipes_here():
    names = {path.stem for path in CONFIGS.glob("*.py")} - {"base"}
    assert names == {
        "siglip2_qwen3_connector", "siglip2_qwen3", "llava_1_5", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5",
        "gemma3", "gemma4", "internvl3", "early_fusion", "video", "audio", "dpo", "qwen2_5_vl_lora", "qwen3_vl_qlora",
        "gemma3_lora", "paligemma2", "paddleocr_vl",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "init_from", "millions"),
    [
        pytest.param(
            "siglip2_qwen3_connector", "vision:{}/tower,decoder:{}/small", 428 + 596 + 14, marks=pytest.mark.full
        ),
        pytest.param(
            "siglip2_qwen3_connector", "vision:{}/tower,decoder:{}/large", 428 + 1721 + 17, marks=pytest.mark.full
        ),
        ("siglip2_qwen3", "vision:{}/tower,decoder:{}/large", 428 + 1721 + 17),
        ("llava_1_5", "{}/llava", 7051),
        ("qwen2_5_vl", "{}/qwen", 8292),
        pytest.param("qwen3_vl", "{}/qwen3", 4438, marks=pytest.mark.full),
        ("qwen3_vl_moe", "{}/qwen3_moe", 31071),
        pytest.param("qwen3_5", "{}/qwen3_5", 9410, marks=pytest.mark.full),
        pytest.param("gemma3", "{}/gemma", 4300, marks=pytest.mark.full),
        ("gemma4", "{}/gemma4", 31273),
        pytest.param("internvl3", "{}/intern", 7945, marks=pytest.mark.full),
        ("paligemma2", "{}/paligemma2", 3032),
        pytest.param("paddleocr_vl", "{}/paddleocr", 800, marks=pytest.mark.full),
        ("early_fusion", "", 7014),
        ("qwen2_5_vl_lora", "{}/qwen", 8292 + 20),
        ("qwen3_vl_qlora", "{}/qwen3_8b", 8767 + 22),
        ("gemma3_lora", "{}/gemma", 4300 + 39),
        pytest.param("dpo", "{}/qwen", 8292 + 50, marks=pytest.mark.full),
    ],
)
def test_a_recipe_at_its_true_size_has_a_step_that_fits_its_mesh(name, init_from, millions, released):
    """Parameters as published, shapes and shardings of the state, and the step traced; nothing is computed."""
    from jaxmm.training.program import abstract_batch, make_program

    text = init_from.replace("{}", str(released))
    config = command.parse([f"--config={CONFIGS / name}.py", f"--config.init_from={text}"], {}).config
    recipe = read_recipe(config)
    spec = recipe.model
    if name == "early_fusion":  # the vocabulary is the tokenizer's
        spec = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, vocab_size=65536))
        recipe = recipe._replace(model=spec)
    count = sum(math.prod(shape) for shape, _ in flat_axes(spec.plain).values())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8})
    budgets = Budgets(config.seq_len, 4608, 32, config.seq_len, **({"pairs": 8} if config.objective else {}))
    program = make_program(config, recipe, steps=config.steps, targets=budgets.targets, sources=1)
    with jax.set_mesh(mesh):
        state = program.abstract_state(mesh)
        moments = {id(x) for x in jax.tree.leaves(state.opt_state)}
        assert len(moments) >= 2 * len([p for p in flat_axes(spec) if recipe.trainable.learns(p)])
        after, metrics = jax.eval_shape(program.step, state, abstract_batch(recipe, budgets, 8, mesh))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics.loss_sum.shape == ()
    bytes_of_one = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.params))
    assert bytes_of_one < 1.05 * count / 8


@pytest.mark.parametrize(
    ("name", "folder", "learnt"),
    [("qwen2_5_vl_lora", "qwen", 20_185_088), ("qwen3_vl_qlora", "qwen3_8b", 21_823_488)],
)
def test_a_recipe_of_adapters_learns_as_many_parameters_as_peft_counts(name, folder, learnt, released):
    config = command.parse([f"--config={CONFIGS / name}.py", f"--config.init_from={released / folder}"], {}).config
    recipe = read_recipe(config)
    shapes = {path: shape for path, (shape, _) in flat_axes(recipe.model).items()}
    assert sum(math.prod(shape) for path, shape in shapes.items() if recipe.trainable.learns(path)) == learnt


def split_folder(whole: Path, root: Path) -> str:
    """A tower's and a decoder's own folders, of a model in LFM2-VL's layout, as ``config.init_from`` takes them."""
    config = json.loads((whole / "config.json").read_text())
    tensors = safetensors.numpy.load_file(whole / "model.safetensors")
    for part, key, prefix, own in (
        ("vision", "vision_config", "model.vision_tower.", "vision_model."),
        ("decoder", "text_config", "model.language_model.", "model."),
    ):
        folder = root / part
        folder.mkdir()
        found = {own + n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        found |= {n: x for n, x in tensors.items() if n == "lm_head.weight" and part == "decoder"}
        safetensors.numpy.save_file(found, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config[key]))
    processor = {"image_processor_type": "Siglip2ImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (root / "vision" / "preprocessor_config.json").write_text(json.dumps(processor | {"resample": 2}))
    tokenizer = made_folders.byte_level_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(root / "decoder")
    return f"vision:{root / 'vision'},decoder:{root / 'decoder'}"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[str]:
    """What makes a run of a recipe small; its optimizer, its frozen parts and its schedule stay."""
    data = small_run.make_data(tmp_path_factory.mktemp("data")) / "dataset_info.json"
    return [
        f"--config.data.path={data}", "--config.data.mixture=colours:0.7,pages:0.3", "--config.eval.examples=8",
        f"--config.data.cache={tmp_path_factory.getbasetemp() / 'cache'}", "--config.seq_len=128",
        "--config.batch_size=8", "--config.steps=4", "--config.optimizer.warmup=1", "--config.log.every=1",
        "--config.log.tensorboard=False", "--config.image.min_pixels=64", "--config.image.max_pixels=1024",
    ]  # fmt: skip


def trained(name: str, workdir: Path, *arguments: str) -> dict[str, np.ndarray]:
    """Runs a recipe; returns its last parameters."""
    assert train.main([f"--config={CONFIGS / name}.py", f"--workdir={workdir}", *arguments]) == 0
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    return {n: x for n, x in small_run.saved(workdir, step).items() if n.startswith("params.")}


def begun(name: str, *arguments: str) -> dict[str, np.ndarray]:
    """The parameters that the recipe begins with."""
    return small_run.first_params(f"--config={CONFIGS / name}.py", *arguments)


def parts_that_differ(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> set[str]:
    return {name.split(".")[1] for name in a if not np.array_equal(a[name], b[name])}


@pytest.mark.slow
@pytest.mark.full  # test_tutorials.py runs both stages too
def test_both_stages_of_a_tower_and_a_decoder_run_and_what_they_make_is_served(small, tmp_path):
    start = split_folder(made_folders.folder_of("qwen3", tmp_path / "whole"), tmp_path)
    first = [*small, f"--config.init_from={start}", "--config.image.merge=3", "--config.connector.mlp=32"]
    still = begun("siglip2_qwen3_connector", *first)
    aligned = trained("siglip2_qwen3_connector", tmp_path / "one", *first)
    assert parts_that_differ(still, aligned) == {"connector"}
    second = [*small, f"--config.init_from={tmp_path / 'one'}"]
    small_run.assert_same_bits(aligned, begun("siglip2_qwen3", *second))
    tuned = trained("siglip2_qwen3", tmp_path / "two", *second)
    assert parts_that_differ(aligned, tuned) == {"vision", "connector", "decoder"}
    assert export.main([f"--workdir={tmp_path / 'two'}", f"--output={tmp_path / 'out'}"]) == 0
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (processor["image_processor_type"], processor["resample"]) == ("Lfm2VlImageProcessor", 2)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Colour?"}]}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>Colour?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["video", pytest.param("audio", marks=pytest.mark.full)])
def test_a_demo_of_clips_runs_small_and_its_figures_are_in_the_summary(name, tmp_path, monkeypatch):
    for source, count in (("training_source", 60), ("test_source", 30)):
        monkeypatch.setattr(DEMOS[name], source, functools.partial(getattr(DEMOS[name], source), examples=count))
    sizes = [a for a in small_run.TINY if "seq_len" not in a and "pixels" not in a and "every" not in a]
    run = [*sizes, f"--config.data.cache={tmp_path / 'cache'}", "--config.steps=2", "--config.eval.every=0"]
    trained(name, tmp_path / "run", *run)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    figures = summary["eval"][f"demo_{name}_test"]
    assert figures["answers"] == 30
    assert set(figures["answer_accuracy_by_kind"]) == {"order", "identity", "count"}
    assert all(0 <= figures[f"answer_accuracy_{what}"] <= 1 for what in ("blind", "reversed"))


@pytest.mark.slow
@pytest.mark.full  # test_ready_media.py trains on such tokens too
def test_early_fusion_runs_small(small, tmp_path):
    rng = np.random.default_rng(0)
    records = [
        {"text": f"page {i} <image> end", "image_tokens": [rng.integers(0, 8192, 16).tolist()]} for i in range(16)
    ]
    path = tmp_path / "pages.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    sizes = [
        f"--config.{key}" for key in (
            "decoder.width=32", "decoder.layers=2", "decoder.heads=2", "decoder.kv_heads=2", "decoder.head_dim=16",
            "decoder.mlp=64",
        )
    ]  # fmt: skip
    mine = [a for a in small if "data.path" not in a and "mixture" not in a]
    trained("early_fusion", tmp_path / "run", *mine, *sizes, f"--config.data.path={path}")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["modalities"]["image_tokens"]["targets"] > 0
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]["model_type"] == "qwen3"
