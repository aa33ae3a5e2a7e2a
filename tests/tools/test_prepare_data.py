"""tools/prepare_data.py: raw data in, a folder out that a run takes, and a report of what is in it."""

import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
import pytest

from jaxmm import command
from jaxmm import prepare as tool
from jaxmm.corpus import load_corpus
from jaxmm.data import demo
from jaxmm.data.documents import Image
from jaxmm.data.prepare.prepared import Prepared, open_prepared
from jaxmm.data.reading import Reading
from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.image_spec import ImageSpec
from jaxmm.recipe import read_data, train_corpus

TOOL = Path(__file__).parents[2] / "tools" / "prepare_data.py"
IMAGE = ImageSpec(patch_size=4, merge=2, min_pixels=8 * 8, max_pixels=24 * 24)


def write(folder: Path, records: int = 30) -> Path:
    """A dataset_info.json with "cats" (images, one of them missing) and "pages" (text)."""
    folder.mkdir(parents=True)
    PIL.Image.new("RGB", (32, 16)).save(folder / "cat.png")
    cats = [
        {"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": f"Cat {i}."}],
         "images": ["none.png" if i == 3 else "cat.png"]}
        for i in range(records)
    ]  # fmt: skip
    (folder / "cats.json").write_text(json.dumps(cats))
    (folder / "pages.jsonl").write_text("\n".join(json.dumps({"text": "x" * i}) for i in range(1, records + 1)))
    info = {
        "cats": {"file_name": "cats.json", "formatting": "sharegpt", "columns": {"images": "images"}},
        "pages": {"file_name": "pages.jsonl", "columns": {"prompt": "text"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder / "dataset_info.json"


def corpus(path: str, mixture: str, cache: Path):
    template = Template(load_tokenizer(""), "sft")
    return load_corpus(path, mixture, template, IMAGE, cache, demo.test_source(seed=0))


def test_what_it_writes_is_what_a_run_takes(tmp_path, capsys):
    info = write(tmp_path / "data")
    arguments = [f"--input={info}", f"--output={tmp_path / 'out'}", "--mixture=cats:0.7,pages:0.3"]
    assert tool.main(arguments) == 0
    out = capsys.readouterr().out
    assert re.search(r"source +modality +documents +tokens +images +megapixels +skipped\n", out)
    assert re.search(r"cats +image +29 +\d+ +29 +0\.01485 +1\n", out)
    assert re.search(r"pages +text +30 +495 +0 +0 +0\n", out)
    assert re.search(r"<= 32 +15 +#+\n", out)
    assert re.search(r"left out .*\ncats +missing +1\n", out)
    assert re.search(r"\ncats +conversations +30 +read\ncats +images +30 +read\npages +text +30 +read\n", out)
    path = re.search(r"--config\.data\.path=(\S+) --config\.data\.mixture=cats:0\.7,pages:0\.3", out)
    assert path
    found = corpus(path[1], "cats:0.7,pages:0.3", tmp_path / "cache")
    assert found.names == ["cats", "pages"]
    assert found.shares == [0.7, 0.3]
    raw = corpus(str(info), "cats:0.7,pages:0.3", tmp_path / "cache")
    assert [s.prepared.meta for s in found.lengths] == [s.prepared.meta for s in raw.lengths]
    assert corpus(path[1], "", tmp_path / "cache").names == ["cats", "pages"]
    assert tool.main(arguments) == 0  # nothing to do, and the same report
    assert capsys.readouterr().out == out


def test_the_program_prepares_with_workers_and_tells_its_progress_in_plain_lines(tmp_path):
    info = write(tmp_path / "data", 3000)
    command = [sys.executable, str(TOOL), "--input", str(info), "--mixture=pages", "--output", str(tmp_path / "out")]
    done = subprocess.run([*command, "--workers=2"], capture_output=True, text=True)
    assert done.returncode == 0
    line = r"preparing pages: [\d,]+ documents  [\d,]+/s  [\d.]+ MB/s  \d+%(  ETA \d+s)?"  # none if it was fast
    assert all(re.fullmatch(line, said) for said in done.stderr.splitlines()), done.stderr
    assert "ready: --config.data.path" in done.stdout
    (folder,) = (tmp_path / "out").iterdir()
    assert len(Prepared(folder)) == 3000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--output=x"], "--input is missing"),
        (["--input=x"], "--output is missing"),
        (["--input=x", "--output=y", "--engine=rai"], "'rai' is not one of local, ray; did you mean 'ray'"),
        (["--input=/no/where", "--output=y"], "no file /no/where"),
        (["--input=x", "--output=y", "--mixture=a:b"], "--mixture: 'a:b' has no positive share"),
        (["--input=x", "--output=y", "--worker=2"], "unknown flag --worker; did you mean '--workers'"),
        (["--input=x", "--output=y", "--preferences=pair"], "--preferences 'pair' must be pairs or judged; did you"),
    ],
)
def test_a_mistake_is_one_line(arguments, says):
    with pytest.raises(UserError) as caught:
        tool.main(arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("asked", "says"), [("", "pairs"), ("judged", "pairs"), ("pairs", "pairs")])
def test_data_of_other_preferences_names_the_flag_that_reads_it(asked, says, tmp_path):
    record = {"prompt": "Who?", "chosen": "I.", "rejected": "You."}
    (tmp_path / "pairs.json").write_text(json.dumps([record if asked != "pairs" else {"text": "a page"}]))
    with pytest.raises(UserError, match=rf"--preferences={says} of jaxmm prepare"):
        tool.main([f"--input={tmp_path / 'pairs.json'}", f"--output={tmp_path / 'out'}", f"--preferences={asked}"])


@pytest.mark.parametrize(("has", "wanted", "says"), [
    ("pairs", "judged", "set config.objective to dpo, ipo, simpo or orpo, or give it other data"),
    ("judged", "pairs", "set config.objective to kto, or give it other data"),
    ("judged", "", "set config.objective to kto, or prepare it again with --preferences=''"),
    ("", "pairs", "config.objective to '', or prepare it again with --preferences=pairs, if its records have them"),
])  # fmt: skip
def test_a_run_of_another_objective_than_the_prepared_data_says_what_learns_from_it(has, wanted, says, tmp_path):
    record = {
        "": {"text": "A page."}, "pairs": {"prompt": "Who?", "chosen": "I.", "rejected": "You."},
        "judged": {"prompt": "Who?", "completion": "I.", "label": True},
    }[has]  # fmt: skip
    (tmp_path / "some.json").write_text(json.dumps([record] * 2))
    output = tmp_path / "out"
    tool.main([f"--input={tmp_path / 'some.json'}", f"--output={output}", f"--preferences={has}"])
    template, default = Template(load_tokenizer(""), "sft"), demo.test_source(seed=0)
    with pytest.raises(UserError) as caught:
        load_corpus(str(output), "", template, IMAGE, tmp_path / "cache", default, Reading(preferences=wanted))
    assert str(caught.value).endswith(says)


def test_an_earlier_state_in_the_output_is_named_and_not_mixed_in(tmp_path, capsys):
    info = write(tmp_path / "data")
    arguments = [f"--input={info}", f"--output={tmp_path / 'out'}", "--mixture=pages"]
    tool.main(arguments)
    (before,) = (tmp_path / "out").iterdir()
    os.utime(tmp_path / "data" / "pages.jsonl", ns=(1, 1))
    with pytest.raises(UserError, match=rf"{before} holds 'pages' as it was.*: delete it, or give another --output"):
        tool.main(arguments)
    assert [f.name for f in (tmp_path / "out").iterdir()] == [before.name]


def test_raw_data_at_a_url_is_prepared_to_a_url_and_read_from_it(tmp_path, capsys):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    local = write(tmp_path / "data")
    memory.put(str(local.parent), "/raw", recursive=True)
    url = "memory://ready/here"
    arguments = ["--input=memory://raw/dataset_info.json", f"--output={url}", f"--cache={tmp_path / 'cache'}"]
    assert tool.main([*arguments, "--mixture=pages"]) == 0
    found = corpus(url, "", tmp_path / "elsewhere")
    assert found.names == ["pages"]
    reference = corpus(str(local), "pages", tmp_path / "cache")
    ours, theirs = found.lengths[0].prepared, reference.lengths[0].prepared
    assert ours.meta == theirs.meta
    for e in range(len(ours)):
        np.testing.assert_array_equal(ours.read(e).tokens, theirs.read(e).tokens)
        assert ours.read(e).origin == theirs.read(e).origin
    memory.store.clear()


def test_the_closing_line_is_taken_by_a_run(tmp_path, capsys):
    info = write(tmp_path / "data")
    special = ["--learn=last", "--thinking=off", "--special_tokens=/<[a-z ]+>/", "--special_tokens_in="]
    tool.main([f"--input={info}", f"--output={tmp_path / 'out'}", "--mixture=cats", *special])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ready: ")]
    given = shlex.split(line.removeprefix("ready: "))
    assert "--config.data.special_tokens_in=" in given
    base = [f"--config={TOOL.parents[1] / 'configs/base.py'}", f"--config.data.cache={tmp_path / 'cache'}"]
    config = command.parse([*base, *given], {}).config
    assert len(train_corpus(config, read_data(config)).lengths[0]) == 29
    assert "learn" not in tool.ready("out", command.parse([], tool.FLAGS, config="none"))


def test_pictures_by_url_in_prepared_data_are_asked_for_only_where_that_is_allowed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "A cat.", "image": "memory://pictures/cat.png"}\n')
    picture = io.BytesIO()
    PIL.Image.new("RGB", (32, 16)).save(picture, "PNG")
    fsspec.filesystem("memory").pipe("/pictures/cat.png", picture.getvalue())
    tool.main([f"--input={path}", f"--output={tmp_path / 'out'}", "--allow_urls"])
    (folder,) = (tmp_path / "out").iterdir()
    with pytest.raises(
        UserError, match=r"a\.jsonl, record 0: memory://.*allow them with config\.data\.allow_urls=True"
    ):
        open_prepared(str(folder), [], tmp_path, Reading())
    (found,) = open_prepared(str(folder), [], tmp_path, Reading(allow_urls=True))
    assert found.read(0).images == [Image(path="memory://pictures/cat.png")]
    found.reading = Reading()  # of a later record, the first to name one
    with pytest.raises(UserError, match=r"config\.data\.allow_urls=True"):
        pickle.loads(pickle.dumps(found)).read(0)
