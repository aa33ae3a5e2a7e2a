"""The maps of an answer are of its own tokens, over its own media, and light what was looked at."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import PIL.Image
import pytest
from conftest import IMAGE, Tiny, picture

from jaxmm.data.documents import Image
from jaxmm.inference.answers import Prompt
from jaxmm.models.multimodal import Compute, logical_axes
from jaxmm.models.probe import CLASSES
from jaxmm.monitor.attention import Probe
from jaxmm.monitor.heatmaps import TOKENS, Look, lay_out, looks, sample


@pytest.fixture(scope="module")
def probe(tiny: Tiny) -> Probe:
    return Probe(tiny.spec, Compute(), TOKENS)


def looks_for_white(tiny: Tiny) -> dict[str, Any]:
    """Parameters of a model whose text attends, in its first layer, to the white patches of a picture."""

    def plain(path: Any, described: Any) -> np.ndarray:
        return np.full(described[0], float(path[-1].key == "scale"), np.float32)

    import jax

    params = jax.tree_util.tree_map_with_path(plain, logical_axes(tiny.spec), is_leaf=lambda x: isinstance(x, tuple))
    vision, connector, decoder = params["vision"], params["connector"], params["decoder"]
    vision["patch_embedding"]["kernel"][:, 0], vision["patch_embedding"]["kernel"][:, 1] = 1 / 48, -1 / 48
    connector["up"]["kernel"][::16, 0] = 1.0  # the first feature of each of the four patches of a soft token
    connector["down"]["kernel"][0, 0] = 10.0
    decoder["embedding"][:, 1], connector["down"]["bias"][1] = 3.0, 3.0
    attention = decoder["blocks"]["attention"]  # the last pair of rotary dims hardly turns
    attention["query"]["kernel"][:, 1, :, -1], attention["key"]["kernel"][:, 0, :, -1] = 9.0, 9.0
    return params


def black_with_white(height: int, width: int, where: tuple[slice, slice]) -> Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[where] = 255
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return Image(data=file.getvalue())


def maps_of(kept: dict[str, Any]) -> np.ndarray:
    """(maps, tokens, soft tokens) as a page reads them."""
    flat = np.frombuffer(base64.b64decode(kept["maps"]["data"]), np.uint8).astype(float)
    scale = np.array(kept["maps"]["scale"])
    return scale[:, None, None] * (flat.reshape(len(scale), len(kept["tokens"]), kept["soft"]) / 255) ** 2


def test_the_map_of_a_model_that_looks_for_white_lights_the_white_square(tiny, template, probe):
    square = black_with_white(16, 24, (slice(8, 16), slice(16, 24)))  # the last of 2 x 3 soft tokens
    corner = black_with_white(24, 16, (slice(0, 8), slice(0, 8)))  # the first of 3 x 2
    prompts = [Prompt((square, corner), "where?"), Prompt((corner,), "and here?")]
    answers = [template.stamp("left"), template.stamp("up")]
    first, second = looks(probe, looks_for_white(tiny), lay_out(prompts, answers, template, IMAGE))
    assert first.tokens == list("left")
    assert [one.grid for one in first.shown] == [(1, 2, 3), (1, 3, 2)]
    assert first.maps_LHAS.shape == (2, 4, 4, 12)
    in_first_layer = first.maps_LHAS[0].min((0, 1))
    assert in_first_layer[[5, 6]].sum() > 0.95, "the white squares of both pictures, wherever it asks from"
    assert second.maps_LHAS[0, ..., 0].min() > 0.95
    np.testing.assert_allclose(first.maps_LHAS.sum(-1).mean((0, 1)), first.mass_XA[CLASSES.index("image")], atol=1e-6)

    kept = sample("where?", "left", "right", first)
    assert [m["first"] for m in kept["media"]] == [0, 6]
    assert kept["soft"] == 12
    assert kept["chosen"] == [[layer, head] for layer in range(2) for head in range(4)]
    np.testing.assert_allclose(maps_of(kept)[0], first.maps_LHAS.mean((0, 1)), atol=0.004)
    shown = PIL.Image.open(io.BytesIO(base64.b64decode(kept["media"][0]["src"].partition(",")[2])))
    assert (np.asarray(shown)[8:, 16:] == 255).all()
    assert shown.size == (kept["media"][0]["width"], kept["media"][0]["height"]) == (24, 16)


def test_without_an_answer_or_media_there_is_nothing_to_see(tiny, template, probe):
    prompts = [Prompt((picture(16, 16),), "a"), Prompt((), "text alone")]
    rows = lay_out(prompts, [[], template.stamp("yes")], template, IMAGE)
    nothing, blind = looks(probe, tiny.params, rows)
    assert nothing.tokens == []
    assert sample("a", "", "b", nothing)["maps"]["data"] == ""
    assert blind.shown == []
    kept = sample("text alone", "yes", "no", blind)
    assert (kept["soft"], kept["media"], "image" in kept["mass"]) == (0, [], False)
    np.testing.assert_allclose(sum(np.array(mass) for mass in kept["mass"].values()), 1, atol=1e-5)


def test_where_not_all_heads_have_room_those_that_look_most_are_kept(monkeypatch):
    monkeypatch.setattr("jaxmm.monitor.heatmaps.MAP_BYTES", 3 * 2 * 5)
    maps_LHAS = np.zeros((2, 3, 2, 5), np.float32)
    maps_LHAS[1, 2], maps_LHAS[0, 1] = 0.2, 0.1
    kept = sample("q", "a", "a", Look(["x", "y"], [], np.zeros((len(CLASSES), 2)), maps_LHAS))
    assert kept["chosen"] == [[0, 1], [1, 2]]
    np.testing.assert_allclose(maps_of(kept)[:, 0, 0], [0.05, 0.1, 0.2], atol=0.001)


def test_where_maps_of_single_heads_are_too_large_their_mean_is_made(tiny, template, probe, monkeypatch):
    rows = lay_out([Prompt((picture(16, 24),), "a")], [template.stamp("yes")], template, IMAGE)
    (whole,) = looks(probe, tiny.params, rows)
    monkeypatch.setattr("jaxmm.monitor.attention.MAP_BYTES", 1000)
    (mean,) = looks(probe, tiny.params, rows)
    assert mean.maps_LHAS.shape == (1, 1, 3, 6)
    np.testing.assert_allclose(mean.maps_LHAS[0, 0], whole.maps_LHAS.mean((0, 1)), atol=1e-6)
    assert sample("a", "yes", "no", mean)["chosen"] == []
