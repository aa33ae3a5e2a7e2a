"""Splits by names of files and folders, and a part that is held out by a hash of each example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxmm.data import files, splits
from jaxmm.data.documents import Document
from jaxmm.data.reading import Reading
from jaxmm.data.sources import read_sources
from jaxmm.errors import UserError


def write(folder: Path, name: str, *texts: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts or (name,)))


def texts(source) -> list[str]:
    return [d.turns[0].parts[0].text for d in source.documents() if isinstance(d, Document)]


def read(folder: Path, **reading) -> list[str]:
    (source,) = read_sources(str(folder), [], Reading(**reading))
    return texts(source)


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], ["validation-00000.jsonl", "test-00000.jsonl"]),
        (["train.jsonl"], ["val.jsonl", "test.jsonl"]),
        (["coco_train.jsonl"], ["coco_dev.jsonl"]),
        (["train/a.jsonl", "train/b.jsonl"], ["val/a.jsonl", "test/a.jsonl"]),
        (["data/train-0.jsonl"], ["data/validation-0.jsonl"]),
        (["cats.jsonl", "dogs.jsonl"], ["test.jsonl"]),
    ],
    ids=lambda names: names[0],
)
def test_training_reads_train_and_evaluation_what_is_held_out(tmp_path, train, held_out):
    for name in (*train, *held_out):
        write(tmp_path, name)
    (source,) = read_sources(str(tmp_path), [])
    assert texts(source) == train
    assert source.name == tmp_path.name
    assert "config.data.split chooses another" in source.told[0] or "its folder data" in source.told[0]
    assert read(tmp_path, evaluation=True) == held_out[:1]
    assert read(tmp_path, split="train") == train
    last = splits.of(held_out[-1].rpartition("/")[2]) or splits.of(held_out[-1].partition("/")[0])
    assert read(tmp_path, split=last) == held_out[-1:]


def test_a_folder_without_the_split_says_what_it_has(tmp_path):
    write(tmp_path, "test-0.jsonl")
    write(tmp_path, "dev-0.jsonl")
    with pytest.raises(UserError, match=r"holds test, validation and no train: say which, as config\.data\.split=test"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"has no split 'train': it has test, validation"):
        read(tmp_path, split="train")
    write(tmp_path, "only/test-0.jsonl")
    (source,) = read_sources(str(tmp_path / "only"), [])
    assert (len(texts(source)), source.told[0].rpartition(": ")[2]) == (1, "its test is read")


def test_files_that_no_name_splits_are_all_read(tmp_path):
    for name in ("a.jsonl", "contest.jsonl", "training.jsonl"):
        write(tmp_path, name)
    (source,) = read_sources(str(tmp_path), [])
    assert (len(texts(source)), source.told) == (3, ())


def test_a_pattern_is_what_it_matches_and_tells_a_mixture(tmp_path):
    write(tmp_path, "train.jsonl")
    write(tmp_path, "test.jsonl")
    (source,) = read_sources(str(tmp_path / "*.jsonl"), [])
    assert texts(source) == ["test.jsonl", "train.jsonl"]
    assert "matches files of test, train, and all are read" in source.told[0]


def test_names_are_in_the_order_of_their_numbers(tmp_path):
    names = ["part-2.jsonl", "part-10.jsonl", "part-011.jsonl", "part-100.jsonl"]
    for name in reversed(names):
        write(tmp_path, name)
    assert read(tmp_path) == names
    assert read(tmp_path / "part-*.jsonl") == names
    assert sorted(["b/1", "a10", "a/9", "a2", "A1"], key=files.natural) == ["A1", "a/9", "a2", "a10", "b/1"]


def test_what_is_held_out_is_never_trained_on(tmp_path):
    write(tmp_path, "a.jsonl", *(f"Page {i % 400}." for i in range(500)))
    train = read(tmp_path / "a.jsonl", val_size=0.2)
    held_out = read(tmp_path / "a.jsonl", val_size=0.2, held_out=True)
    assert len(train) + len(held_out) == 500
    assert not set(train) & set(held_out)
    assert 50 < len(held_out) < 150
    write(tmp_path, "b/elsewhere.jsonl", *(f"Page {i}." for i in range(400)))
    assert set(read(tmp_path / "b/elsewhere.jsonl", val_size=0.2, held_out=True)) == set(held_out)
    with pytest.raises(UserError, match=r"val_size is 1: it must be a part"):
        Reading(val_size=1)
