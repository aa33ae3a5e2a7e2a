"""What the page of a run holds for its script: curves, attention and samples as the log has them, and small."""

from __future__ import annotations

import base64
import json
from typing import Any

import made_run
import numpy as np
import pytest
import run_store

from jaxmm.report import run_page, run_samples, thinning
from jaxmm.report.run_chart import MOST
from jaxmm.report.run_data import read_run


def test_thinning_keeps_the_ends_and_every_extreme():
    values = np.random.default_rng(0).standard_normal(10_007)
    values[[17, 9000]] = 50, -50
    kept = thinning.kept(values.tolist(), 1500)
    assert len(kept) <= 1500
    assert kept == sorted(set(kept))
    assert {0, 17, 9000, 10_006} <= set(kept)
    assert thinning.kept([3.0, 1.0], 1500) == [0, 1]


@pytest.mark.parametrize(("count", "most"), [(5, 9), (9, 5), (100, 1), (2, 2)])
def test_what_is_spread_has_the_last(count, most):
    chosen = thinning.spread(count, most)
    assert chosen[-1] == count - 1
    assert len(chosen) == min(count, most)


def test_a_long_log_makes_a_small_page_that_says_that_it_is_thinned(tmp_path):
    page = run_page.render([made_run.long_run(tmp_path)])
    assert len(page.encode()) < run_page.LIMIT
    store = run_store.store_of(page)
    (loss,) = [chart for chart in store["charts"]["curves"] if chart["key"] == "loss"]
    assert loss["curves"][0]["of"] == 10_000
    assert len(loss["curves"][0]["x"]) <= MOST
    assert "of their 10,000 points" in page


def test_a_page_is_small_whatever_its_samples_are_and_says_what_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (256, 256, 3), np.uint8)
    heads = [(layer, head) for layer in range(4) for head in range(4)]
    maps = rng.random((17, 12, 1024))
    samples = [
        made_run.sample(photo, ["word"] * 12, maps, question=f"{i}?", truth="", grid=(1, 32, 32), chosen=heads)
        for i in range(40)
    ]
    made_run.write_run(tmp_path, samples=samples)
    page = run_page.render([read_run(tmp_path)])
    assert len(page.encode()) < run_page.LIMIT
    kept = run_store.store_of(page)["runs"][0]["samples"][0]["samples"]
    assert 0 < len(kept) < 40
    assert "to keep the page small" in page
    assert all(sample["media"][0]["src"].startswith("data:image/jpeg") for sample in kept)


def test_of_many_sources_the_largest_are_shown_and_the_others_told(tmp_path):
    names = [f"source_{n:04}" for n in range(1500)]

    def of(value: float) -> dict[str, Any]:
        return dict.fromkeys(names, value)

    lines = made_run.write_run(tmp_path, steps=60)
    looked_at = dict.fromkeys(names, lines[-1]["attention"]["sources"]["pages"])
    norms = {name: made_run.norms(decoder=0.5) for name in names}
    for line in lines:
        line["sources"] = {name: {"loss": 2.0, "targets": float(n % 1400)} for n, name in enumerate(names)}
        line["balance"]["sources"] = {name: {"asked": 1 / 1500, "tokens": 1 / 1500, "loss": 1 / 1500} for name in names}
        if "attention" in line:
            line["attention"]["sources"] = looked_at
            line["gradients"]["sources"], line["losses"]["sources"] = norms, of(2.0)
        if "eval" in line:
            line["eval"] = dict.fromkeys(names, line["eval"]["held_out"])
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    page = run_page.render([read_run(tmp_path)])
    assert len(page.encode()) < run_page.LIMIT / 4
    shown = {f"source_{n:04}" for n in range(1388, 1400)}
    assert set(run_store.curves_of(page, "loss-sources")) == shown
    assert set(run_store.curves_of(page, "answers")) == shown
    assert set(run_store.store_of(page)["runs"][0]["attention"]["steps"][-1]["sources"]) == shown
    assert "<li>The other 1,488 of 1,500 sources, which have fewer targets" in page
    assert "<li>The other 1,488 of 1,500 held-out sources" in page


def test_samples_that_do_not_fit_are_left_out_and_told(tmp_path):
    good, short, foreign, far = made_run.looked(), made_run.looked(), made_run.looked(), made_run.looked()
    short["maps"]["data"] = short["maps"]["data"][:8]
    foreign["media"][0]["src"] = "https://example.com/x.png"
    far["media"][0]["first"] = 5
    made_run.write_run(tmp_path, samples=[good, short, foreign, far])
    found, notes = run_samples.samples_json(read_run(tmp_path), 10**6)
    assert [len(source["samples"]) for source in found] == [1]
    assert notes == [f"{tmp_path.name}: 3 of 4 held-out samples, as their parts do not fit each other"]


def test_the_norm_of_all_parts_is_the_logged_one_or_that_of_its_parts(tmp_path):
    lines = made_run.write_run(tmp_path)
    old = next(line for line in lines if "gradients" in line)
    del old["gradients"]["sources"]["chats"]["all"]
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    norms = run_store.curves_of(run_page.render([read_run(tmp_path)]), "gradients-data")["chats"]["y"]
    assert len(norms) > 2
    assert norms == pytest.approx([1.0] * len(norms))  # of 0.8 and 0.6


def test_the_loss_by_modality_is_one_and_no_share(tmp_path):
    lines = made_run.write_run(tmp_path)
    found = run_store.curves_of(run_page.render([read_run(tmp_path)]), "loss-modalities")
    looks = [line["losses"]["modalities"]["text"] for line in lines if "losses" in line]
    held_out = [line["eval"]["held_out"]["modalities"]["text"]["loss"] for line in lines if "eval" in line]
    assert found["text alone"]["y"] == pytest.approx(looks, rel=1e-5)
    assert found["held out: held_out: text alone"]["y"] == pytest.approx(held_out, rel=1e-5)
    for line in lines:
        line.pop("losses", None)
        for figures in line.get("eval", {}).values():
            figures.pop("modalities")
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    assert not run_store.curves_of(run_page.render([read_run(tmp_path)]), "loss-modalities")


def test_a_look_without_a_class_gives_it_nothing(tmp_path):
    lines = made_run.write_run(tmp_path)
    looks = [line for line in lines if "attention" in line]
    looks[-1]["attention"] = made_run.attention(np.random.default_rng(0), 1.0, made_run.CLASSES[1:])
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    run = read_run(tmp_path)
    page = run_page.render([run])
    told = run_store.store_of(page)["runs"][0]["attention"]
    assert told["classes"] == list(made_run.CLASSES)
    assert np.max(told["steps"][0]["mass"]["image"]) > 0
    assert np.shape(told["steps"][-1]["mass"]["image"]) == (made_run.LAYERS, made_run.HEADS)
    assert not np.any(told["steps"][-1]["mass"]["image"])
    onto = run_store.curves_of(page, "attention")["images"]
    assert (len(onto["y"]), onto["y"][-1]) == (len(looks), 0)
    onto = run_store.curves_of(run_page.render([run, run]), "attention")[""]
    assert (len(onto["y"]), onto["y"][-1]) == (len(looks), 0)


def test_the_maps_that_stay_are_those_of_the_heads_that_look_most(tmp_path):
    maps = np.full((5, 3, 64 * 64), 1e-6)
    heads = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for head, part in enumerate((0.1, 0.9, 0.2, 0.8), 1):
        maps[head, :, head::7] = part / (64 * 64)
    pixels = np.zeros((16, 16, 3), np.uint8)
    one = made_run.sample(pixels, list("abc"), maps, question="?", truth="", grid=(1, 64, 64), chosen=heads)
    made_run.write_run(tmp_path, samples=[one])
    ((source,), notes) = run_samples.samples_json(read_run(tmp_path), 3 * 3 * 64 * 64 * 4 // 3 + 2000)
    (kept,) = source["samples"]
    assert kept["chosen"] == [[0, 1], [1, 1]]
    coded = np.frombuffer(base64.b64decode(kept["maps"]["data"]), np.uint8).reshape(3, 3, -1)
    back = (coded / 255.0) ** 2 * np.array(kept["maps"]["scale"])[:, None, None]
    np.testing.assert_allclose(back, maps[[0, 2, 4]], atol=0.01 * maps.max())
    assert "of the 2 heads that look most, of up to 4" in notes[0]


def test_a_run_of_text_alone_has_no_curves_and_classes_of_media(tmp_path):
    made_run.write_run(tmp_path)
    made_run.leave_text_alone(tmp_path)
    page = run_page.render([read_run(tmp_path)])
    of = run_store.store_of(page)
    assert of["runs"][0]["attention"]["classes"] == ["first", "turn"]
    assert set(run_store.curves_of(page, "attention")) == {"the first position", "text of the turn"}
    assert set(run_store.curves_of(page, "gradients")) == {"all"}  # it is that of the decoder
    assert set(run_store.curves_of(page, "fill")) == {"tokens"}
    shown = {chart["key"] for charts in of["charts"].values() for chart in charts}
    assert {"loss", "loss-sources", "answers", "gradients-data", "shares"} <= shown
    assert not {"media", "media-gain", "loss-modalities"} & shown
    assert "-0.0" not in json.dumps(of)


def test_a_part_that_cannot_learn_keeps_its_place_in_a_run_with_media(tmp_path):
    lines = made_run.write_run(tmp_path)
    for line in lines:
        line["grad_norm_by_part"]["vision"] = 0.0
    made_run.write_lines(tmp_path / "metrics.jsonl", lines)
    page = run_page.render([read_run(tmp_path)])
    assert set(run_store.curves_of(page, "gradients")) == {"all", "connector", "decoder", "vision"}
