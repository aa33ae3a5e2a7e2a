"""The monitor's numbers are those of dense attention in float64, whatever the mask, the packing and the mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from conftest import IMAGE, Tiny, chat, picture, plain, random_documents, rows_of

from jaxmm import sharding
from jaxmm.data.assemble import Assembler, Loaded
from jaxmm.data.documents import Document, Text, Turn
from jaxmm.data.packing.pieces import pieces_of
from jaxmm.data.packing.plan import Budgets, Lengths, Piece, pack
from jaxmm.models import attention as attn
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import Compute, ModelSpec, logical_axes, make_model
from jaxmm.models.probe import CLASSES, COUNT, ENTROPY
from jaxmm.monitor.attention import AttentionMonitor, Probe, choose_queries
from jaxmm.monitor.standing import FIRST, MODALITIES, SEPARATOR, TEXT, standing

ROWS = 4
SPLIT = 24  # tokens, above which a document is split: most have less
BUDGETS = Budgets(tokens=128, patches=160, items=8, targets=128)
DECODERS = {
    "plain": {},
    "window": {"window": 6, "global_layers": (1,), "local_rope_theta": 100.0},
    "softcap": {"attention_softcap": 2.0, "attention_scale": 0.5},
    "two ways": {"bidirectional_blocks": True, "qk_norm": True},
}


def variant(tiny: Tiny, name: str) -> tuple[ModelSpec, Any]:
    """The tiny model with another decoder, and parameters that make attention uneven."""
    spec = dataclasses.replace(tiny.spec, decoder=dataclasses.replace(tiny.spec.decoder, **DECODERS[name]))
    rng = np.random.default_rng(1)

    def draw(path: Any, described: Any) -> np.ndarray:
        noise = 0.4 * rng.standard_normal(described[0], np.float32)
        return 1 + noise if path[-1].key == "scale" else noise

    return spec, jax.tree_util.tree_map_with_path(draw, logical_axes(spec), is_leaf=lambda x: isinstance(x, tuple))


def loaded_rows(lengths: Lengths, blocks: bool = False) -> Loaded:
    """Rows of documents, those above SPLIT tokens in parts."""
    everything, small = np.arange(len(lengths)), BUDGETS._replace(tokens=SPLIT)
    pieces, needs, _ = pieces_of(lengths, 0, everything, everything, small, "split")
    rows, listed = pack(needs, BUDGETS)[:ROWS], pieces.listed()
    rows += [[] for _ in range(ROWS - len(rows))]
    return Assembler([lengths], BUDGETS, dataclasses.replace(IMAGE, bidirectional=blocks))(
        [[listed[n] for n in row] for row in rows]
    )


class Layers:
    """Queries and keys of every layer, as the model makes them."""

    def __init__(self, spec: ModelSpec, params: Any, loaded: Loaded, monkeypatch: pytest.MonkeyPatch):
        self.found: list[tuple[np.ndarray, np.ndarray]] = []
        real = attn.attention

        def listening(q_BTHD, k_BTKD, *rest: Any, **options: Any) -> jax.Array:
            if q_BTHD.shape[1] == BUDGETS.tokens and options.get("mask") is not None:
                jax.debug.callback(lambda q, k: self.found.append((q, k)), q_BTHD, k_BTKD, ordered=True)
            return real(q_BTHD, k_BTKD, *rest, **options)

        with monkeypatch.context() as patched:
            patched.setattr("jaxmm.models.block.attn.attention", listening)
            jax.jit(lambda p, b: make_model(spec)[1](p, b, Compute()))(params, loaded.batch)
            jax.effects_barrier()


def dense(q_THD: np.ndarray, k_TKD: np.ndarray, b: int, layer: int, loaded: Loaded, spec: DecoderSpec) -> np.ndarray:
    """Probabilities (H, T, T) of one row in float64, its mask made from documents, blocks and window."""
    segments, blocks = loaded.batch.text.segments[b], loaded.batch.blocks_BT[b]
    t = np.arange(len(segments))
    seen = t[None] <= t[:, None]
    if spec.bidirectional_blocks:
        starts = np.flatnonzero(np.diff(segments, prepend=0) | np.diff(blocks, prepend=0))
        run = np.searchsorted(starts, t, side="right")
        seen |= (run[None] == run[:, None]) & (blocks[:, None] > 0)
    if spec.is_local()[layer]:
        seen &= t[None] > t[:, None] - spec.window
    seen &= (segments[None] == segments[:, None]) & (segments[:, None] > 0)
    k_THD = np.repeat(k_TKD, spec.heads // spec.kv_heads, axis=1).astype(np.float64)
    logits = np.einsum("qhd,khd->hqk", q_THD.astype(np.float64), k_THD) * (spec.attention_scale or spec.head_dim**-0.5)
    if cap := spec.attention_softcap:
        logits = cap * np.tanh(logits / cap)
    raised = np.where(seen, np.exp(logits - logits.max(-1, keepdims=True)), 0)
    return raised / np.maximum(raised.sum(-1, keepdims=True), 1e-300)


@pytest.mark.parametrize("name", DECODERS)
@hypothesis.settings(max_examples=2)
@hypothesis.given(seed=st.integers(0, 1 << 30), count=st.integers(3, 9))
def test_sums_and_maps_are_those_of_dense_attention_in_float64(name, tiny, lengths_of, template, seed, count):
    spec, params = variant(tiny, name)
    lengths = lengths_of(random_documents(count, seed))
    loaded = loaded_rows(lengths, blocks=spec.decoder.bidirectional_blocks)
    stands = standing(loaded, [lengths], template)
    columns = np.tile(np.array([0, 3, 9, 50], np.int32), (ROWS, 1))
    queries = choose_queries(loaded, stands, 24, np.zeros(1, int))._replace(columns_BC=columns)
    found = PROBES.setdefault(name, Probe(spec, Compute(), groups=8))(params, loaded.batch, queries)
    with pytest.MonkeyPatch.context() as monkeypatch:
        layers = Layers(spec, params, loaded, monkeypatch).found
    assert len(layers) == spec.decoder.layers
    wanted = np.zeros(found.sums_LHGX.shape)
    for layer, (q, k) in enumerate(layers):
        for b in range(ROWS):
            p_HTT = dense(np.asarray(q)[b], np.asarray(k)[b], b, layer, loaded, spec.decoder)
            for i, (at, group, turn) in enumerate(zip(*(x[b] for x in queries[:3]), strict=True)):
                if group < 0:
                    continue
                np.testing.assert_allclose(found.maps_LBHQC[layer, b, :, i], p_HTT[:, at, columns[b]], atol=1e-5)
                wanted[layer, :, group] += by_class(p_HTT[:, at], stands.classes_BT[b], stands.turns_BT[b], turn)
    count_G = wanted[0, 0, :, COUNT]
    found_LHGX, each_G = np.asarray(found.sums_LHGX), np.maximum(count_G, 1)[:, None]
    np.testing.assert_allclose(found_LHGX / each_G, wanted / each_G, atol=1e-5)
    assert count_G.sum() == (queries.groups_BQ >= 0).sum() > 0
    whole = np.broadcast_to(count_G, found_LHGX.shape[:3])
    np.testing.assert_allclose(found_LHGX[..., :ENTROPY].sum(-1), whole, rtol=1e-5)


PROBES: dict[str, Probe] = {}  # compiled once each


def by_class(p_HT: np.ndarray, classes: np.ndarray, turns: np.ndarray, turn: int) -> np.ndarray:
    """(H, X) of one query: what it attends to, counted position by position."""
    sums = np.zeros((len(p_HT), len(CLASSES) + 2))
    for t, kind in enumerate(classes):
        name = ["image", "video", "audio", "separators", "first", "text"][kind]
        if name == "text":
            name = "turn" if turns[t] == turn else "earlier"
        sums[:, CLASSES.index(name)] += p_HT[:, t]
    sums[:, ENTROPY] = -(p_HT * np.log(np.maximum(p_HT, 1e-300))).sum(-1)
    sums[:, COUNT] = 1
    return sums


@pytest.fixture
def many(lengths_of):
    """Two sources, one of which has pictures in some of its documents."""
    return [lengths_of(random_documents(7, 3), "mixed"), lengths_of([plain("only words, " * 4)] * 3, "words")]


def two_sources(many: list[Lengths]) -> Loaded:
    rows = [[Piece(s, e, 0, int(many[s].tokens_E[e])) for e in example] for s, example in
            ((0, [0, 1]), (0, [2]), (1, [0, 1]), (0, [3, 4]))]  # fmt: skip
    return Assembler(many, BUDGETS, IMAGE)(rows)


def test_on_every_axis_of_a_mesh_and_in_microbatches_the_figures_are_those_of_one_device(tiny, many, template):
    loaded, found = two_sources(many), []
    meshes = ({"data": 1}, 1, 1), ({"fsdp": 2, "tensor": 2, "context": 2}, 8, 1), ({"data": 2, "tensor": 2}, 4, 2)
    for sizes, devices, parts in meshes:
        mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            monitor = AttentionMonitor(tiny.spec, Compute(), mesh, many, template, 20, accumulation=parts)
            found.append(monitor(tiny.params, loaded, sharding.place_batch(loaded.batch, mesh)))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5) if not isinstance(a, str) else a == b,
                     found[0], other)  # fmt: skip
    of = found[0]
    assert of["queries"] == sum(source["queries"] for source in of["sources"].values())
    assert set(of["sources"]) == {"mixed", "words"}
    assert of["classes"] == ["image", "separators", "first", "turn", "earlier"]
    assert max(of["sources"]["words"]["mass"]["image"]) == 0 < min(np.ravel(of["media"]["image"]["mass"]))
    shares = sum(np.array(mass) for mass in of["mass"].values())
    np.testing.assert_allclose(shares, np.ones((of["layers"], of["heads"])), atol=1e-5)
    assert of["media"]["image"]["queries"] < of["queries"]


def test_classes_have_the_numbers_that_the_probe_reads():
    assert CLASSES[: len(MODALITIES)] == MODALITIES
    assert [CLASSES[SEPARATOR], CLASSES[FIRST], CLASSES[TEXT]] == ["separators", "first", "turn"]


def test_positions_are_told_apart_by_what_stands_there(lengths_of, template):
    lengths = lengths_of([chat((picture(16, 16), "ab"), "cd"), plain("x", picture(8, 8), "y")])
    loaded = Assembler([lengths], BUDGETS, IMAGE)(rows_of(lengths, (0, 1)))
    stands = standing(loaded, [lengths], template)
    first, second = (slice(at, at + int(n)) for at, n in zip((0, lengths.tokens_E[0]), lengths.tokens_E, strict=True))
    # <|user|> <|image_start|> four soft tokens <|image_end|> a b <|end|> <|assistant|> c d <|end|>
    wanted = [FIRST, SEPARATOR, 0, 0, 0, 0, SEPARATOR, TEXT, TEXT, SEPARATOR, SEPARATOR, TEXT, TEXT, SEPARATOR]
    assert stands.classes_BT[0, first].tolist() == wanted
    assert stands.turns_BT[0, first].tolist() == [0] * 11 + [1] * 3
    assert stands.seen_BT[0, first].tolist() == [0, 0] + [1] * 12
    # x <|image_start|> one soft token <|image_end|> y, and the end of the text
    assert stands.classes_BT[0, second].tolist() == [FIRST, SEPARATOR, 0, SEPARATOR, TEXT, SEPARATOR]
    assert stands.turns_BT[0, second].tolist() == [0] * 6
    assert stands.seen_BT[0, second].tolist() == [0, 0, 1, 1, 1, 1]
    queries = choose_queries(loaded, stands, 100, np.zeros(1, int))
    targets = np.flatnonzero(loaded.batch.weights_BT[0] > 0)
    assert queries.at_BQ[0, : len(targets)].tolist() == targets.tolist()
    assert (queries.turns_BQ[0, :3] == 1).all(), (
        "an answer's first token is predicted from the turn before, for its own"
    )


def test_in_a_part_of_a_split_document_stands_what_stands_there_in_the_whole(lengths_of, template):
    said = ((picture(16, 16), Text("ab")), (Text("cd"),), (picture(8, 8), Text("ef")), (Text("ghi"),))
    several = Document(
        tuple(Turn("assistant" if n % 2 else "user", parts, bool(n % 2)) for n, parts in enumerate(said)), "chat"
    )
    lengths = lengths_of([several])
    count = int(lengths.tokens_E[0])
    assemble = Assembler([lengths], BUDGETS, IMAGE)
    whole = standing(assemble([[Piece(0, 0, 0, count)]]), [lengths], template)
    for cut in (1, 8, 12, 14, count - 1):  # text of the user's, of an answer, a header; no cut goes through a picture
        parts = [Piece(0, 0, 0, cut), Piece(0, 0, cut, count)]
        found = standing(assemble([parts]), [lengths], template)
        at = np.arange(count) != cut
        assert found.classes_BT[0, cut] == FIRST, "there attention begins anew"
        np.testing.assert_array_equal(found.classes_BT[0, :count][at], whole.classes_BT[0, :count][at])
        np.testing.assert_array_equal(found.turns_BT, whole.turns_BT)
        is_media = np.isin(whole.classes_BT[0, :count], range(len(MODALITIES)))
        is_media[cut] |= whole.classes_BT[0, cut] < len(MODALITIES)
        seen = np.concatenate([np.logical_or.accumulate(part) for part in np.split(is_media, [cut])])
        np.testing.assert_array_equal(found.seen_BT[0, :count], seen, "only what stands before it in its part")


@pytest.mark.parametrize("looks", [True, False])
def test_a_model_built_to_look_at_the_picture_shows_it_and_one_built_not_to_does_not(looks, tiny, lengths_of, template):
    """Soft tokens get a large first feature by the connector's bias, text none: queries that want it meet pictures."""
    spec, (_, params) = tiny.spec, variant(tiny, "plain")
    params = jax.tree.map(np.copy, params)
    decoder, connector = params["decoder"], params["connector"]
    decoder["embedding"][:, 0], decoder["embedding"][:, 1] = 0, 3.0  # all text has the second feature
    for name in connector:
        if "bias" in connector[name]:
            last = connector[name]["bias"]
    last[..., 0], last[..., 1] = 60.0, 3.0
    attention = decoder["blocks"]["attention"]
    attention["query"]["kernel"][:], attention["key"]["kernel"][:] = 0, 0
    # The last pair of rotary dims hardly turns: there queries of text meet keys of pictures.
    attention["query"]["kernel"][:, 1, :, -1] = 9.0
    attention["key"]["kernel"][:, 0, :, -1] = 9.0 if looks else -9.0
    lengths = lengths_of([chat((picture(16, 16), "ab"), "cd")])
    loaded = Assembler([lengths], BUDGETS, IMAGE)([[Piece(0, 0, 0, int(lengths.tokens_E[0]))]])
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    monitor = AttentionMonitor(spec, Compute(), mesh, [lengths], template, most=8)
    mass = np.array(monitor(params, loaded, loaded.batch)["media"]["image"]["mass"])[0]
    assert (mass > 0.95).all() if looks else (mass < 0.02).all(), mass


def test_of_many_sources_the_smallest_are_told_together(monkeypatch, tiny, many, template):
    monkeypatch.setattr("jaxmm.monitor.attention.MOST", 1)
    loaded, mesh = two_sources(many), sharding.make_mesh({"data": 1}, jax.devices()[:1])
    monitor = AttentionMonitor(tiny.spec, Compute(), mesh, many, template, 20)
    of = monitor(tiny.params, loaded, loaded.batch)
    assert {name: source["queries"] for name, source in of["sources"].items()} == {"2 other sources": of["queries"]}
