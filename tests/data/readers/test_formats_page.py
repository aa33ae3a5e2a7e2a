"""docs/formats.md: its examples read, and its lists are the code's."""

import json
import re
from pathlib import Path

import pytest

import jaxmm
from jaxmm.data.documents import SKIP_REASONS
from jaxmm.data.readers import containers, conversations, dataset_info, typed
from readers.reading import said

PAGE = (Path(jaxmm.__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
PAIRS, JUDGED = (PAGE.index(f"\n### {title}\n") for title in ("Pairs", "Judged answers"))
EXAMPLES = [  # with which preferences they have
    (example[1], "judged" if example.start() > JUDGED else "pairs" if example.start() > PAIRS else "")
    for example in re.finditer(r"```json\n(.*?)```", PAGE, re.DOTALL)
]


@pytest.mark.parametrize(("example", "preferences"), EXAMPLES)
def test_every_example_reads(folder, example, preferences):
    records = [json.loads(example)] * (1 + (preferences == "judged"))  # a judged one needs another one
    document = next(folder.source(records, allow_urls=True, preferences=preferences).documents())
    assert bool(document.verdict) == bool(preferences)
    found = "".join(shown for _, shown in said(document))
    for image in re.findall(r"[\w/:.]*\d\.(?:jpg|npy)", example):
        assert f"[{image if '://' in image else image.rpartition('/')[2]}]" in found


def test_the_page_names_all_there_is():
    assert len(EXAMPLES) == 24
    for name in (*SKIP_REASONS, *containers.SUFFIXES, *conversations.ROLES, *dataset_info.TAGS, *dataset_info.HUBS):
        assert f"`{name}`" in PAGE, name
    for columns in dataset_info.COLUMNS.values():
        assert all(f"`{name}`" in PAGE for name in columns)
    assert all(f"`{name}`" in PAGE for name in (*typed.IMAGE_KEYS, *typed.TEXT_KEYS))
