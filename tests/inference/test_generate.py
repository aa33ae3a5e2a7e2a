"""The command: one prompt, streams of it, and files of prompts, by a model of random weights that writes letters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from conftest import picture

from jaxmm import command, generate
from jaxmm.errors import UserError
from jaxmm.hf.pretrained import Pretrained
from jaxmm.inference import answers
from jaxmm.inference.generation_config import differences, repetition_penalty, said_by
from jaxmm.inference.prompts import media_file, read_prompts
from jaxmm.inference.stop_strings import Reply
from jaxmm.models.multimodal import flat_axes
from jaxmm.recipe import Recipe, read_recipe

ROOT = Path(__file__).parents[2]
TINY = (
    "--config.vision.width=16", "--config.vision.layers=1", "--config.vision.heads=2", "--config.vision.mlp=32",
    "--config.connector.mlp=32", "--config.decoder.width=32", "--config.decoder.layers=2", "--config.decoder.heads=2",
    "--config.decoder.head_dim=16", "--config.decoder.mlp=64",
)  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = command.parse([f"--config={ROOT / 'configs/base.py'}", *TINY], {}).config
    (folder / "config.json").write_text(json.dumps(command.to_json(config)))
    for i, size in enumerate([(20, 30), (64, 40)]):
        (folder / f"{i}.png").write_bytes(picture(*size, seed=i).data)
    return folder


@pytest.fixture(scope="module")
def recipe(workdir) -> Recipe:
    return read_recipe(command.parse([f"--workdir={workdir}"], generate.FLAGS, config="workdir").config, workdir)


@pytest.fixture(scope="module")
def params(recipe):
    rng = np.random.default_rng(1)
    letters = recipe.template.tokenizer.encode("abcde é€", add_special_tokens=False)
    tree: dict = {}
    for path, (shape, _) in flat_axes(recipe.model).items():
        value = 0.3 * rng.standard_normal(shape, np.float32) + float(path[-1] == "scale")
        if path[-1] == "head":
            value *= np.isin(np.arange(len(value)), letters)[:, None]  # other tokens have the logit 0
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return jax.tree.map(jax.numpy.asarray, tree)


@pytest.fixture(autouse=True)
def saved(monkeypatch, params):
    """A checkpoint that need not be trained."""
    monkeypatch.setattr(generate, "saved_params", lambda workdir, recipe, mesh, step: params)


@pytest.fixture
def ask(workdir, capsys):
    """``ask(flags...) -> what is printed``."""

    def ask(*flags: str) -> str:
        capsys.readouterr()
        assert generate.main([f"--workdir={workdir}", *flags]) == 0
        return capsys.readouterr().out

    return ask


@pytest.fixture(scope="module")
def prompts(workdir) -> Path:
    records = [
        {"prompt": "What is this?", "image": "0.png", "id": 7},
        {"prompt": "And a much longer question about two images, which takes more room?", "images": ["1.png", "0.png"]},
        {"prompt": "nothing to see"},
    ]
    (workdir / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    return workdir / "prompts.jsonl"


@pytest.fixture
def printed(monkeypatch) -> list[str]:
    """What each call of ``print`` prints."""
    found: list[str] = []
    monkeypatch.setattr(generate, "print", lambda text, end="\n", flush=False: found.append(text + end), raising=False)
    return found


def test_the_stream_is_the_whole_text_and_comes_token_by_token(ask, printed):
    ask("--prompt=Hello", "--max_tokens=24")
    (whole,) = printed
    assert len(set(whole)) > 3, "a model that writes different letters"
    assert {"\xe9", "€"} & set(whole), "characters of more than one token"
    del printed[:]
    ask("--prompt=Hello", "--max_tokens=24", "--stream=True")
    assert "".join(printed) == whole
    assert len(printed) == 24 + 1
    assert sum(map(bool, printed)) > 12


def test_a_terminal_is_streamed_to(ask, monkeypatch, printed):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    ask("--prompt=Hello", "--max_tokens=5")
    assert len(printed) == 5 + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens_ends_the_answer_before_it(ask, stream):
    whole = ask("--prompt=Hello", "--max_tokens=24").rstrip("\n")
    stop = whole[5:8]  # a byte is a token
    found = ask("--prompt=Hello", "--max_tokens=24", f"--stream={stream}", f"--stop=never,{stop}")
    assert found == whole[: whole.index(stop)] + "\n"


def test_a_file_of_prompts_gives_each_object_with_the_answer_it_gets_alone(ask, prompts, workdir):
    lines = [json.loads(line) for line in ask(f"--prompts={prompts}", "--max_tokens=20").splitlines()]
    records = [json.loads(line) for line in prompts.read_text().splitlines() if line]
    assert [{k: v for k, v in line.items() if k != "answer"} for line in lines] == records
    assert len({line["answer"] for line in lines}) == 3
    for record, line in zip(records, lines, strict=True):
        images = record.get("images", [record["image"]] if "image" in record else [])
        flags = [f"--image={','.join(str(workdir / name) for name in images)}"] if images else []
        assert ask(*flags, f"--prompt={record['prompt']}", "--max_tokens=20") == line["answer"] + "\n"


def test_draws_depend_on_the_seed_and_not_on_how_prompts_are_grouped(ask, prompts):
    flags = [f"--prompts={prompts}", "--max_tokens=12", "--temperature=2.0", "--top_p=0.95"]
    drawn = ask(*flags, "--seed=1")
    assert ask(*flags, "--seed=1", "--batch_size=2") == drawn
    assert ask(*flags, "--seed=2") != drawn
    assert ask(f"--prompts={prompts}", "--max_tokens=12") != drawn


def test_a_temperature_close_to_0_is_greedy(ask):
    assert ask("--prompt=Hello", "--temperature=0.0001") == ask("--prompt=Hello")


@pytest.mark.parametrize("kind", ["lfm2_vl", "llava", "qwen3_vl"])
def test_what_a_folder_says_of_answers_counts_whether_the_model_was_whole_or_joined(tmp_path, kind):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    start = Pretrained(None, None, {"model_type": kind}, {}, tmp_path, {})  # without a processor, as joined parts
    assert said_by(start, tmp_path) == {"repetition_penalty": 1.1}
    assert said_by(None, tmp_path) == {}


def test_with_a_large_repetition_penalty_no_token_comes_twice(ask, recipe):
    plain = ask("--prompt=", "--image=", "--prompt=z", "--max_tokens=6")
    text = ask("--prompt=z", "--max_tokens=6", "--repetition_penalty=1000000")
    assert len(set(plain)) < len(plain.strip()) or plain != text
    ids = recipe.template.tokenizer.encode(text.rstrip("\n"), add_special_tokens=False)
    assert len(set(ids)) == len(ids)


def test_what_a_folder_says_of_drawing_is_followed_or_told():
    asked = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 0.0}
    assert list(differences({"do_sample": False, "top_k": 50, "repetition_penalty": 1.0}, asked)) == []
    said = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05, "num_beams": 1}
    followed, drawn = differences(said, asked)
    assert "repetition_penalty 1.05 of the model's folder is followed" in followed
    assert drawn.endswith("than here: --temperature=0.6 --top_k=20")
    mine = asked | {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.3}
    assert list(differences(said, mine)) == []
    assert [repetition_penalty(said, 0.0), repetition_penalty(said, 1.3), repetition_penalty({}, 0.0)] == [1.05, 1.3, 1]
    (line,) = differences({"no_repeat_ngram_size": 3, "bad_words_ids": []}, asked)
    assert line.endswith("of the model's folder: no_repeat_ngram_size 3")


def test_a_picture_that_cannot_be_decoded_is_named(recipe, tmp_path):
    PIL.Image.fromarray(np.zeros((20, 20), np.float32)).save(tmp_path / "floats.tiff")  # whose header is well
    prompt = answers.Prompt((media_file("image", tmp_path / "floats.tiff", "--image"),), "What?")
    with pytest.raises(UserError, match=r"floats\.tiff: an image's bytes are no picture of"):
        answers.prompt_batch([answers.Prompt((), "a"), prompt], recipe.template, recipe.image)


def test_answers_are_as_long_as_asked(recipe, params):
    generator = answers.make_generator(recipe.model, recipe.compute, ())
    prompt = answers.Prompt((), "Hello")
    for count in (1, 5, 64, 65):
        *_, (reply,) = answers.write(generator, params, [prompt], recipe.template, recipe.image, count)
        assert isinstance(reply, Reply)
        assert len(reply.tokens) == count


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("", []),
        ("one,two", ["one", "two"]),
        (r"\n\n,)", ["\n\n", ")"]),
        (r"a\,b, c", ["a,b", " c"]),
        (r"\\n\t", ["\\n\t"]),
        (",,", []),
    ],
)
def test_stop_strings_are_read_with_escapes(text, stops):
    assert generate.read_stops(text) == stops


@pytest.mark.parametrize("text", ["\\x", "a\\"])
def test_an_escape_that_means_nothing_is_one_line(text):
    with pytest.raises(UserError, match="means nothing; a backslash itself is"):
        generate.read_stops(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to answer"),
        (["--prompt=a", "--max_tokens=0"], "--max_tokens is 0"),
        (["--prompt=a", "--temperature=-1"], "--temperature is -1"),
        (["--prompt=a", "--temperature=1", "--top_p=0"], "--top_p is 0"),
        (["--prompt=a", "--temperature=1", "--top_p=1.5"], "--top_p is 1.5"),
        (["--prompt=a", "--top_p=0.5"], "needs a --temperature above 0"),
        (["--prompt=a", "--temperature=1", "--top_k=-1"], "--top_k is -1"),
        (["--prompt=a", "--top_k=5"], "--top_k chooses what is drawn from: it needs"),
        (["--prompt=a", "--min_p=0.1"], "--min_p chooses what is drawn from: it needs"),
        (["--prompt=a", "--min_p=2"], "--min_p is 2"),
        (["--prompt=a", "--repetition_penalty=-1"], "--repetition_penalty is -1"),
        (["--prompt=a", "--seed=-1"], "--seed is -1"),
        (["--image=none.png"], "--image none.png: there is no such file"),
        (["--prompts=none.jsonl"], "--prompts none.jsonl: there is no such file"),
        (["--prompts=x", "--prompt=a"], "goes without --prompt"),
    ],
)
def test_wrong_flags_are_one_line(workdir, flags, message):
    with pytest.raises(UserError, match=message) as caught:
        generate.main([f"--workdir={workdir}", *flags])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompt"),
        ('{"prompt": "a"}\n{"prompt"', r"line 2: no valid JSON"),
        ("[1]", "line 1: give an object"),
        ('{"prompt": 1}', "line 1: give an object"),
        ('{"image": 1}', "line 1: 'image' is a path"),
        ('{"image": "none.png"}', "none.png: there is no such file"),
        ("{}", "neither a prompt nor an image"),
        ('{"prompt": "a", "answer": "b"}', "no 'answer'"),
        ('{"image": "a", "images": ["b"]}', "give 'image' or 'images', not both"),
    ],
)
def test_wrong_lines_of_a_file_of_prompts_are_named(tmp_path, text, message):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_prompts(str(tmp_path / "p.jsonl"))


def test_a_file_of_prompts_that_is_not_utf8_is_one_line(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(UserError, match="is not UTF-8"):
        read_prompts(str(tmp_path / "p.jsonl"))
