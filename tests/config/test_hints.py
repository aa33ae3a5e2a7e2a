"""What other programs call a key is answered by the key that does it, wherever it is typed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from jaxmm import command
from jaxmm.config.hints import HINTS, hint
from jaxmm.config.keys import KEYS
from jaxmm.errors import UserError

NAMED = re.compile(r"\bconfig\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)")
FLAG = re.compile(r"`jaxmm (\w+) --(\w+)")


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        command.parse(["--config=base", *arguments], {"workdir": ("", "")})
    return str(error.value)


def test_every_key_and_flag_that_a_hint_names_is_there():
    for name, text in HINTS.items():
        assert name not in {key.split(".")[-1] for key in KEYS}, f"{name} is a key's own name"
        assert set(NAMED.findall(text)) <= set(KEYS), name
        for module, flag in FLAG.findall(text):
            assert flag in importlib.import_module(f"jaxmm.{module}").FLAGS, name


def test_every_value_that_a_hint_names_is_one_of_its_key():
    for name, text in HINTS.items():
        for key, value in re.findall(r"config\.([\w.]+)=([\w,]+)(?![\w:.])", text):
            assert not KEYS[key].wrong(key, KEYS[key].settled(float(value) if value.isdigit() else value)), name


# What people type most often, and what each must name.
WANTED = {
    "lr": "optimizer.rate", "learning_rate": "optimizer.rate", "num_train_epochs": "epochs", "max_steps": "steps",
    "per_device_train_batch_size": "batch_size", "gradient_accumulation_steps": "accumulation",
    "cutoff_len": "seq_len", "max_seq_length": "seq_len", "template": "init_from",
    "warmup_steps": "optimizer.warmup", "warmup_ratio": "optimizer.warmup", "weight_decay": "optimizer.weight_decay",
    "lr_scheduler_type": "optimizer.schedule", "max_grad_norm": "optimizer.clip", "bf16": "compute.dtype",
    "fp16": "compute.dtype", "seed": "seed", "output_dir": "", "model_name_or_path": "init_from",
    "dataset": "data.mixture", "dataset_dir": "data.path", "mix_strategy": "data.mixture",
    "interleave_probs": "data.mixture", "packing": "", "val_size": "data.val_size", "eval_steps": "eval.every",
    "save_steps": "checkpoint.every", "save_total_limit": "checkpoint.keep", "logging_steps": "log.every",
    "image_max_pixels": "image.max_pixels", "image_min_pixels": "image.min_pixels",
    "freeze_vision_tower": "optimizer.freeze", "freeze_multi_modal_projector": "optimizer.freeze",
    "freeze_language_model": "optimizer.freeze", "train_on_prompt": "data.learn", "mask_history": "data.learn",
    "enable_thinking": "data.thinking", "streaming": "data.path", "report_to": "log.writers",
    "resume_from_checkpoint": "", "deepspeed": "mesh.fsdp", "fsdp": "mesh.fsdp", "flash_attn": "compute.attention",
    "gradient_checkpointing": "compute.remat", "quantization_bit": "adapter.base_dtype",
    "finetuning_type": "optimizer.freeze", "freeze_trainable_layers": "optimizer.freeze",
    "freeze_extra_modules": "optimizer.freeze", "create_new_adapter": "adapter.rank", "pissa_iter": "adapter.init",
    "pissa_convert": "", "pref_bco_weight": "objective", "ref_adapter_name": "init_from",
    "ref_model_quantization_bit": "init_from", "export_dir": "",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_name_of_another_program_gets_the_key_that_does_it(name, tmp_path):
    key = WANTED[name]
    expected = f"config.{key}" if key else hint(name).replace("config.", "--config.")
    assert expected
    assert expected in refused(f"--{name}=1")
    if name not in ("seed", "fsdp"):
        assert key in refused(f"--config.training.{name}=1")
        file = tmp_path / "mine.py"
        file.write_text(
            f"import base\n\ndef get_config():\n    c = base.get_config()\n    c.{name} = 1\n    return c\n"
        )
        with pytest.raises(UserError) as error:
            command.parse([f"--config={file}"], {})
        assert str(error.value).startswith(f"config file '{file}', line 5: unknown config key '{name}'")
        assert key in str(error.value)


def test_a_rate_is_never_answered_by_a_multiplier():
    for name in ("learning_rate", "learning_rat", "optimizer.learning_rate", "lr", "LR", "learning-rate"):
        told = refused(f"--config.{name}=1e-4")
        assert "use --config.optimizer.rate" in told
        assert "vision_rate" not in told
    assert "vision_rate is a multiple of --config.optimizer.rate" in refused("--vision_tower_lr=1e-5")


def test_a_misspelled_key_of_ours_is_not_taken_for_anothers():
    assert "did you mean 'optimizer.weight_decay'" in refused("--config.optimizer.weigth_decay=1")
    assert "did you mean 'optimizer.warmup'" in refused("--config.optimizer.warmupp=1")


def test_a_command_without_a_config_names_no_key():
    with pytest.raises(UserError, match="unknown flag --lr; --help lists the flags"):
        command.parse(["--lr=1"], {"workdir": ("", "")}, config="none")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.optimizer.ratee = 1e-4", "line 5: unknown config key 'optimizer.ratee'; did you mean 'optimizer.rate'?"),
        ("o = c.optimizer; o.ratee = 1e-4", "line 5: unknown config key 'optimizer.ratee'"),
        ("c.update({'optimizer': {'ratee': 1e-4}})", "line 5: unknown config key 'optimizer.ratee'"),
        ("c['optimizer']['ratee'] = 1e-4", "line 5: unknown config key 'optimizer.ratee'"),
        ("c.optimizer.rate = 'fast'", "line 5: rate is 'fast', not a finite number"),
        ("c.steps = 1.5", "line 5: steps is 1.5, not an integer"),
        ("c.optimizer = ConfigDict({'rate': 'fast'})", "line 5: optimizer.rate is 'fast', not a finite number"),
        ("c.lock(); c.optimizer.ratee = 1", "line 5: unknown config key 'ratee'; did you mean 'optimizer.rate'?"),
        ("setattr(c.optimizer, 'rat' + 'ee', 1)", "unknown config key 'optimizer.ratee'; did you mean"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_of_a_config_file_is_named_with_its_line(line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = "import base\nfrom ml_collections import ConfigDict\ndef get_config():\n    c = base.get_config()\n"
    Path("mine.py").write_text(f"{head}    {line}\n    return c\n")
    with pytest.raises(UserError) as error:
        command.parse(["--config=mine.py"], {})
    assert str(error.value).startswith("config file 'mine.py'")
    assert message in str(error.value)
