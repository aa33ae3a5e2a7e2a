"""A run's model as a Hugging Face folder: written, read again to the bit, started from, and loaded by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
import small_run
from small_run import saved

from jaxmm import export, generate, train
from jaxmm.errors import UserError

pytestmark = pytest.mark.usefixtures("whole_transformers")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    data = small_run.make_data(tmp_path_factory.mktemp("data"))
    return [*small_run.arguments(data, tmp_path_factory.getbasetemp() / "cache"), "--config.eval.every=0"]


@pytest.fixture(scope="module")
def run(arguments, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    assert train.main([*arguments, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert export.main([f"--workdir={run}", f"--output={folder}"]) == 0
    return folder


def parameters(workdir: Path, step: int) -> dict[str, np.ndarray]:
    return {name: value for name, value in saved(workdir, step).items() if name.startswith("params.")}


def still(arguments: list[str], init_from: str) -> list[str]:
    """A run of one step that changes no parameter."""
    return [*arguments, "--config.steps=1", "--config.optimizer.rate=0.0", f"--config.init_from={init_from}"]


def test_an_exported_folder_has_what_is_needed_to_serve_it(exported):
    names = {path.name for path in exported.iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "tokenizer_config.json", "preprocessor_config.json",
        "processor_config.json", "generation_config.json", "README.md",
    }  # fmt: skip
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["Lfm2VlForConditionalGeneration"]
    assert "random weights" in (exported / "README.md").read_text()


def test_a_run_starts_from_an_exported_folder_and_exports_the_same_bits(run, exported, arguments, tmp_path):
    workdir = tmp_path / "again"
    assert train.main([*still(arguments, str(exported)), f"--workdir={workdir}"]) == 0
    small_run.assert_same_bits(parameters(run, 8), parameters(workdir, 1))
    assert export.main([f"--workdir={workdir}", f"--output={tmp_path / 'out'}"]) == 0
    ours, theirs = (
        safetensors.numpy.load_file(folder / "model.safetensors") for folder in (tmp_path / "out", exported)
    )
    small_run.assert_same_bits(ours, theirs)


@pytest.mark.slow
def test_a_tower_and_a_decoder_start_a_run_with_a_fresh_connector(run, exported, arguments, tmp_path):
    folders = {"vision": {}, "decoder": {}}
    config = json.loads((exported / "config.json").read_text())
    for name, value in safetensors.numpy.load_file(exported / "model.safetensors").items():
        for part, prefix, own in (
            ("vision", "model.vision_tower.", "vision_model."), ("decoder", "model.language_model.", "model."),
        ):  # fmt: skip
            if name.startswith(prefix):
                folders[part][own + name.removeprefix(prefix)] = value
        if name == "lm_head.weight":
            folders["decoder"][name] = value
    for part, tensors in folders.items():
        folder = tmp_path / part
        folder.mkdir()
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(
            json.dumps(config[{"vision": "vision_config", "decoder": "text_config"}[part]])
        )
    for path in exported.glob("*token*"):
        (tmp_path / "decoder" / path.name).write_bytes(path.read_bytes())
    tower_s = {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 64, "image_mean": [0.4, 0.5, 0.6]}
    (tmp_path / "vision" / "preprocessor_config.json").write_text(json.dumps(tower_s))
    workdir = tmp_path / "joined"
    start = f"vision:{tmp_path / 'vision'},decoder:{tmp_path / 'decoder'}"
    assert train.main([*still(arguments, start), f"--workdir={workdir}"]) == 0
    theirs, ours = parameters(run, 8), parameters(workdir, 1)
    for name, value in ours.items():
        same = name in theirs and np.array_equal(value, theirs[name])
        assert same != name.startswith("params.connector") or value.std() < 1e-6, name
    # The workdir is enough: the folders may go.
    (tmp_path / "vision").rename(tmp_path / "gone")
    assert export.main([f"--workdir={workdir}", f"--output={tmp_path / 'out'}"]) == 0
    written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    wanted = {"image_processor_type": "Lfm2VlImageProcessor", "resample": 2, "image_mean": [0.4, 0.5, 0.6]}
    assert wanted.items() <= written.items(), "a tower's own processor knows nothing of soft tokens"


CHAT = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.slow
@pytest.mark.parametrize("room", [2, 100])
def test_a_joined_run_has_an_image_token_of_its_own_and_ends_where_its_decoder_did(room, arguments, tmp_path):
    """With a tokenizer of more tokens than the number that LFM2-VL's image token has, and a template of text alone."""
    import transformers
    from made_folders import byte_level_tokenizer, folder_of

    whole = folder_of("qwen3", tmp_path / "whole")
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.add_tokens([f"<{i}>" for i in range(512 - room - len(tokenizer))])
    tokenizer.save_pretrained(whole)
    (whole / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}))
    (whole / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.6}))
    start = still(arguments, f"vision:{whole},decoder:{whole}")
    assert train.main([*start, f"--workdir={tmp_path / 'run'}"]) == 0
    assert export.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    config, generation = (
        json.loads((tmp_path / "out" / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    assert config["image_token_id"] == written.convert_tokens_to_ids("<image>") < config["text_config"]["vocab_size"]
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert written.apply_chat_template(said, tokenize=False) == "user: <image>What?<|im_end|>"
    ends = {7, 9, written.eos_token_id, written.convert_tokens_to_ids("<|im_end|>")}
    assert set(generation["eos_token_id"]) == set(config["eos_token_id"]) == ends


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output is missing"),
        (["--output={tmp}/full"], "exists: give another folder"),
        (["--output={tmp}/new", "--dtype=float8"], "float8' is not one of float32"),
        (["--output={tmp}/new", "--step=99"], "99"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, flags, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UserError, match=message):
        export.main([f"--workdir={run}", *(flag.format(tmp=tmp_path) for flag in flags)])
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_wrong_starts_are_one_line(exported, arguments, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for init_from, message in (
        (str(tmp_path / "none"), "no folder"),
        (f"vision:{exported}", "its parts are vision; a model is made of"),
        (str(other), "'bert' is not supported: those are lfm2_vl"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            train.main([*still(arguments, init_from), f"--workdir={tmp_path / 'w'}"])
        assert "\n" not in str(caught.value)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(32, 24), (50, 70), (9, 40)])
def test_transformers_gives_the_same_answer_from_the_same_patches(run, exported, tmp_path, size, capsys):
    import transformers

    model, info = transformers.AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values()), info
    processor = transformers.AutoProcessor.from_pretrained(exported)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC)
    picture.save(tmp_path / "picture.png")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Colour?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[picture], text=prompt, return_tensors="pt")
    options = {"max_new_tokens": 16, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    written = model.generate(**inputs, **options)
    best = [step[0].topk(2).values.tolist() for step in written.logits]
    # Patches agree to a level of 255, so that what is nearly even may fall to either side: up to there.
    sure = next((n for n, (first, second) in enumerate(best) if first - second < 1e-3), len(best))
    answer = written.sequences[0, inputs["input_ids"].shape[1] :][:sure].tolist()
    known = [i for i in answer if i < len(processor.tokenizer)]  # a model of eight steps writes rows of the padding too
    theirs = processor.decode(known, skip_special_tokens=True)
    capsys.readouterr()
    flags = [f"--image={tmp_path / 'picture.png'}", "--prompt=Colour?", "--max_tokens=16"]
    assert generate.main([f"--workdir={run}", *flags]) == 0
    ours = capsys.readouterr().out.rstrip("\n")
    assert sure >= 2
    assert ours == theirs if sure == len(best) else ours.startswith(theirs)
