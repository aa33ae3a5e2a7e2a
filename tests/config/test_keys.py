"""The table of keys is what base.py has, and no other value gets past the command line, a file, or a run's JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_run import ROOT

from jaxmm import command, sharding
from jaxmm.config import consistency
from jaxmm.config import file as config_file
from jaxmm.config.keys import KEYS, PARTS, completed, flat
from jaxmm.data.packing.pieces import LONG_DOCUMENTS
from jaxmm.data.text.template import OBJECTIVES
from jaxmm.errors import UserError
from jaxmm.models import multimodal
from jaxmm.models.attention import BACKENDS
from jaxmm.models.layers import REMAT
from jaxmm.models.matmuls import MATMULS
from jaxmm.training.optimizer import OPTIMIZERS, SCHEDULES
from jaxmm.training.quantized_moments import MOMENTS

BASE = ROOT / "configs/base.py"
LINE = re.compile(r"    config\.([\w.]+) = .*?(?:  # (.*))?$", re.MULTILINE)
FLAGS: command.Flags = {"workdir": ("", "folder of the run")}


def parse(*arguments: str):
    return command.parse([f"--config={BASE}", *arguments], FLAGS).config


@pytest.fixture
def workdir(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(command.to_json(parse())))
    return tmp_path


def test_the_table_and_base_py_have_the_same_keys_defaults_and_comments():
    space: dict = {}
    exec(BASE.read_text(), space)
    base = flat(space["get_config"]())
    comments = {name: text for name, text in LINE.findall(BASE.read_text()) if name in base}
    rows = [f'"{name}": Key({base[name]!r}, {comments[name]!r}),' for name in base if name not in KEYS]
    assert not rows, f"give KEYS in jaxmm/config/keys.py these rows, with what each may be: {' '.join(rows)}"
    assert not set(KEYS) - set(base), f"give configs/base.py {set(KEYS) - set(base)}, or take it out of KEYS"
    for name, key in KEYS.items():
        told = f"{name} differs between configs/base.py and KEYS in jaxmm/config/keys.py"
        assert (type(base[name]), base[name]) == (type(key.default), key.default), told
        assert key.text, f"say in KEYS of jaxmm/config/keys.py what {name} is for"
        assert comments[name] in ("", key.text), told


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("data.objective", OBJECTIVES),
        ("data.long_documents", LONG_DOCUMENTS),
        ("optimizer.name", OPTIMIZERS),
        ("optimizer.schedule", SCHEDULES),
        ("optimizer.moments", MOMENTS),
        ("compute.remat", REMAT),
        ("compute.attention", ["", *BACKENDS]),
        ("compute.matmul", MATMULS),
    ],
)
def test_choices_are_those_that_the_code_has(name, choices):
    assert set(KEYS[name].choices) == set(choices)


def test_parts_and_axes_are_those_that_the_code_has():
    assert PARTS == multimodal.PARTS
    assert {name for name in KEYS if name.startswith("mesh.")} == {f"mesh.{axis}" for axis in sharding.AXES}


TEXTS = "-1", "0", "1e30", "nan", "1e999", "word", "", "a:b:c", "\x07", "\udcff"
VALUES = None, [1], "word", float("nan"), 10**400, 1.5, True


def outcome(name: str, *arguments: str, **options: str) -> object:
    """The value of a key as a command line gives it, or the one line that is told of it."""
    try:
        return flat(command.parse(arguments, FLAGS, **options).config)[name]
    except UserError as error:
        told = str(error)
        assert name in told or name.split(".")[0] in told, told
        assert "\n" not in told
        return None


@pytest.mark.parametrize("name", sorted(KEYS))
def test_what_is_not_of_a_keys_kind_is_one_line_that_names_it(name, workdir):
    key, file = KEYS[name], workdir / "config.json"
    for text in TEXTS:
        value = outcome(name, f"--config={BASE}", f"--config.{name}={text}")
        assert value is None or type(value) is type(key.default)
    whole = json.loads(file.read_text())
    *groups, last = name.split(".")
    for strange in VALUES:
        node = whole
        for group in groups:
            node = node[group]
        node[last] = strange
        file.write_text(json.dumps(whole))
        value = outcome(name, f"--workdir={workdir}", config="workdir")
        assert value is None or (value == strange and type(value) is type(key.default))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.rate=-1", "config.optimizer.rate is -1.0: it must be a number, 0 to 100"),
        ("optimizer.clip=-1", "config.optimizer.clip is -1.0: it must be"),
        ("optimizer.b1=1.5", "config.optimizer.b1 is 1.5: it must be"),
        ("optimizer.b2=1", "config.optimizer.b2 is 1.0: it must be"),
        ("optimizer.weight_decay=-0.1", "config.optimizer.weight_decay is -0.1: it must be"),
        ("optimizer.end_factor=2", "config.optimizer.end_factor is 2.0: it must be"),
        ("optimizer.decay_fraction=0", "config.optimizer.decay_fraction is 0.0: it must be a number, above 0"),
        ("optimizer.z_loss=-1", "config.optimizer.z_loss is -1.0: it must be"),
        ("optimizer.warmup=-1", "config.optimizer.warmup is -1: it must be"),
        ("objective=sigmoid", "must be one of '', dpo, ipo, simpo, orpo, kto: that is dpo"),
        ("objective=sft", "kto: leave it out, and set config.data.objective=sft"),
        ("objective=dpp", "did you mean 'dpo'"),
        ("optimizer.name=adam", "config.optimizer.name is 'adam': it must be one of muon, adamw; did you mean"),
        ("optimizer.freeze=visoin", "config.optimizer.freeze: no part 'visoin': the parts are vision"),
        ("optimizer.freeze=vision,connector,decoder", "config.optimizer.freeze freezes every part"),
        ("optimizer.decoder_rate=-1", "config.optimizer.decoder_rate is -1.0: it must be"),
        ("decoder.rope_theta=-1", "config.decoder.rope_theta is -1.0: it must be"),
        ("decoder.norm_eps=0", "config.decoder.norm_eps is 0.0: it must be"),
        ("decoder.head_dim=15", "config.decoder.head_dim 15 is odd"),
        ("decoder.kv_heads=3", "config.decoder.heads 4 is no multiple of config.decoder.kv_heads 3"),
        ("decoder.layers=1e9", "config.decoder.layers is 1000000000: it must be an integer, 1 to 1000"),
        ("vision.heads=5", "config.vision.width 96 is no multiple of config.vision.heads 5"),
        ("seq_len=0", "config.seq_len is 0: it must be an integer, 2 to"),
        ("batch_size=0", "config.batch_size is 0: it must be"),
        ("batch_size=1e9", "config.batch_size is 1000000000: it must be"),
        ("accumulation=3", "config.batch_size 8 is no multiple of config.accumulation 3"),
        ("steps=0", "config.steps is 0: it must be at least 1, or config.epochs above 0"),
        ("epochs=1e15", "config.epochs is 1000000000000000.0: it must be"),
        ("seed=-1", "config.seed is -1: it must be"),
        ("compute.dtype=float99", "config.compute.dtype is 'float99': it must be one of '', float32, bfloat16"),
        ("compute.dtype=float16", "config.compute.dtype is 'float16': it must be"),
        ("data.jitter=0.5", "config.data.jitter is 0.5: it must be a number, 0 or above, below 0.5"),
        ("data.loss_weight=a:nan", "config.data.loss_weight: 'a:nan' has no number in range"),
        ("data.loss_weight=a:1,a:2", "config.data.loss_weight names 'a' twice"),
        ("data.mixture=a:0.5,a:0.5", "config.data.mixture names 'a' twice"),
        ("data.mixture=a:1e308,b:1e308", "config.data.mixture: 'a:1e308' has no positive share"),
        ("data.mixture=:1", "config.data.mixture: ':1' names no source"),
        ("eval.mixture=a:-1", "config.eval.mixture: 'a:-1' has no positive share"),
        ("data.predict_image_tokens=True", "config.data.predict_image_tokens=True needs config.data.image_tokens"),
        ("image.max_pixels=255", "config.image.max_pixels 255 is less than a soft token: 16 x 16 pixels"),
        ("patch_budget=7", "config.patch_budget 7 is no multiple of config.image.merge squared, 4"),
        ("mesh.fsdp=0", "config.mesh.fsdp is 0: it must be an integer, 1 to 1048576, or -1"),
        ("mesh.fsdp=-1", "config.mesh.data, config.mesh.fsdp are -1: only one"),
        ("checkpoint.keep=0", "config.checkpoint.keep is 0: it must be"),
        ("eval.examples=0", "config.eval.examples is 0: it must be"),
        ("data.path=a\x00b", "config.data.path="),
        ("adapter.targets=q_proj", "config.adapter.targets is 'q_proj', but config.adapter.rank is 0, which is no"),
        ("adapter.alpha=16", "set config.adapter.rank, or config.adapter.alpha to 0.0"),
        ("adapter.kind=dora", "set config.adapter.rank, or config.adapter.kind to 'lora'"),
        ("adapter.init=pissa", "config.adapter.init is 'pissa', but config.adapter.rank is 0"),
        ("adapter.dropout=0.1", "config.adapter.dropout is 0.1, but config.adapter.rank is 0"),
        ("data.cache=a\nb", "config.data.cache is 'a\\nb': it has control characters"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_told_with_what_it_may_be(change, message):
    with pytest.raises(UserError) as error:
        parse(f"--config.{change}")
    assert message in str(error.value)


def test_limits_of_pictures_that_go_against_each_other_are_one_line():
    with pytest.raises(UserError, match=r"config\.image\.min_pixels 300 is above config\.image\.max_pixels 256"):
        parse("--config.image.min_pixels=300", "--config.image.max_pixels=256")


def test_matmuls_in_float8_are_refused_over_weights_in_few_bits():
    few = "--config.adapter.rank=2", "--config.adapter.base_dtype=nf4"
    with pytest.raises(UserError, match=r"matmul=fp8 does not go with config\.adapter\.base_dtype=nf4: weights in so"):
        parse("--config.compute.matmul=fp8", *few)
    parse("--config.compute.matmul=fp8", few[0], "--config.adapter.base_dtype=bfloat16")
    with pytest.raises(UserError, match=r"config\.compute\.matmul is 'float8'.*that is fp8"):
        parse("--config.compute.matmul=float8")


def test_all_that_is_wrong_is_in_the_one_line():
    with pytest.raises(UserError, match=r"config\.optimizer\.b1 is 2\.0.*; config\.optimizer\.clip is -1\.0"):
        parse("--config.optimizer.clip=-1", "--config.optimizer.b1=2")


def test_what_a_folder_decides_is_not_held_against_the_config():
    assert parse("--config.init_from=model", "--config.patch_budget=7").patch_budget == 7


def test_a_config_file_that_lacks_keys_has_their_defaults(tmp_path):
    (tmp_path / "own.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'steps': 5.0, 'optimizer': {'rate': 1}})\n"
    )
    config = command.parse([f"--config={tmp_path / 'own.py'}"], {}).config
    assert command.differences(parse("--config.steps=5", "--config.optimizer.rate=1"), config) == []
    assert config.is_locked


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return ConfigDict({'optimizer': {'rat': 1}})", "'optimizer.rat'; did you mean 'optimizer.rate'"),
        ("return ConfigDict({'rate': 1})", "unknown config key 'rate'; did you mean 'optimizer.rate'?"),
        ("return ConfigDict({'data': 'x.json'})", "'data'; it is a group of keys, such as 'data.path'"),
        ("return ConfigDict({'steps': 1.5})", "steps is 1.5, not an integer"),
        ("return ConfigDict({'steps': True})", "steps is True, not an integer"),
        ("return ConfigDict({'steps': '7'})", "steps is '7', not an integer"),
        ("return ConfigDict({'optimizer': {'rate': -1.0}})", "config.optimizer.rate is -1.0: it must be"),
        ("raise SystemExit(3)", "config file 'x.py', line 3: SystemExit: 3"),
        ("return get_config()", "line 3: RecursionError"),
        ("c = ConfigDict(); c.a = c; return c", "RecursionError"),
    ],
)  # fmt: skip
def test_a_wrong_config_file_is_one_line(body, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.py").write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    {body}\n")
    with pytest.raises(UserError) as error:
        command.parse(["--config=x.py"], {})
    assert message in str(error.value)


def test_config_files_that_are_none_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.py").mkdir()
    Path("binary.py").write_bytes(b"\xff\xfe\x00\x01" * 9)
    Path("takes.py").write_text("def get_config(size): return size\n")
    for name, message in (
        ("folder.py", "is a folder"), ("binary.py", "UnicodeDecodeError"), ("takes.py", "missing 1 required"),
        ("x" * 5000 + ".py", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            command.parse([f"--config={name}"], {})


def test_a_config_file_that_never_ends_is_ended(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text("import time\ntime.sleep(0.3)\ndef get_config(): raise ValueError\n")
    told: list[str] = []
    monkeypatch.setattr(config_file, "FILE_SECONDS", 0.05)
    monkeypatch.setattr(config_file, "end_at_once", told.append)
    with pytest.raises(UserError):
        command.parse([f"--config={tmp_path / 'x.py'}"], {})
    assert told == [f"config file '{tmp_path / 'x.py'}' has not come to its end within 0.05 s"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no JSON object but a list"),
        ("{", "is no valid JSON"),
        ("[" * 100_000, "is no valid JSON"),
        ('{"steps": NaN}', "steps is nan, not an integer"),
        ('{"optimizer": {"rate": -1}}', "config.optimizer.rate is -1.0"),
        ('{"optimizer": 5}', ""),
    ],
)
def test_a_broken_config_of_a_run_is_one_line(text, message, workdir, capsys):
    (workdir / "config.json").write_text(text)
    if message:
        with pytest.raises(UserError) as error:
            command.parse([f"--workdir={workdir}"], FLAGS, config="workdir")
        assert message in str(error.value)
    else:
        command.parse([f"--workdir={workdir}"], FLAGS, config="workdir")
        assert "does not know, and does not follow: optimizer=5" in capsys.readouterr().err


def test_a_config_of_a_run_that_is_no_text_is_one_line(workdir):
    (workdir / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no valid JSON"):
        command.parse([f"--workdir={workdir}"], FLAGS, config="workdir")
    with pytest.raises(UserError, match="is a file: give the folder of a run"):
        command.parse([f"--workdir={workdir / 'config.json'}"], FLAGS, config="workdir")


def test_an_old_run_has_the_defaults_of_keys_it_lacks_and_unknown_ones_are_told(workdir, capsys):
    values = json.loads((workdir / "config.json").read_text())
    del values["decoder"]["qk_norm"], values["eval"], values["optimizer"]["moments"]
    values["optimizer"]["nesterov"] = True
    (workdir / "config.json").write_text(json.dumps(values))
    config = command.parse([f"--workdir={workdir}"], FLAGS, config="workdir").config
    assert command.differences(parse(), config) == []
    assert "does not know, and does not follow: optimizer.nesterov=True" in capsys.readouterr().err
    assert command.differences(completed(values), completed(command.to_json(parse()))) == [
        "optimizer.nesterov: True -> (absent)"
    ]


def test_every_recipe_is_within_the_table():
    for path in sorted((ROOT / "configs").glob("*.py")):
        consistency.check(flat(command.parse([f"--config={path}"], {}).config))
