"""With a cache as without: a token written by keys and values that were kept is the one the whole row gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, picture, plain

from jaxmm.batch import Batch
from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.plan import Budgets, Piece
from jaxmm.inference.decode import Generator
from jaxmm.models.attention import attention, decode_attention
from jaxmm.models.connector import ConnectorSpec
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.decoder_spec import AttentionSizes
from jaxmm.models.multimodal import Compute, ModelSpec, logical_axes, make_model
from jaxmm.models.recurrent import ConvolutionSpec
from jaxmm.models.rope import RopeScaling
from jaxmm.models.towers.vit import VisionSpec

WRITTEN, ROOM = 10, 16
BUDGETS = Budgets(tokens=48, patches=64, items=2, targets=1)
SCALINGS = (
    RopeScaling(), RopeScaling("linear", 2.0), RopeScaling("llama3", 8.0, 16), RopeScaling("yarn", 4.0, 16),
    RopeScaling("proportional", fraction=0.5), RopeScaling("dynamic", 2.0, 512),
)  # fmt: skip


def model(decoder: DecoderSpec, deep: bool = False) -> tuple[ModelSpec, Any]:
    """A tiny model around a decoder, and parameters none of which is at its initial value."""
    spec = ModelSpec(
        VisionSpec(
            width=16, layers=2, heads=2, mlp=24, patch_size=IMAGE.patch_size, positions=4, taps=(0,) if deep else ()
        ),
        ConnectorSpec(merge=IMAGE.merge, mlp=24, deep=int(deep)),
        decoder,
    )
    rng = np.random.default_rng(0)

    def draw(path: Any, described: Any) -> np.ndarray:
        return 0.2 * rng.standard_normal(described[0], np.float32) + float(path[-1].key == "scale")

    return spec, jax.tree_util.tree_map_with_path(draw, logical_axes(spec), is_leaf=lambda x: isinstance(x, tuple))


def prompts(lengths_of, axes: int, tokens: int = BUDGETS.tokens) -> Batch:
    """Rows of different lengths, with two images, one and none; with three axes, soft tokens have rows and columns."""
    documents = [
        plain("ab", picture(16, 16, 1), "cde", picture(8, 24, 2), "f"),
        plain(picture(24, 16, 3), "what is it?"),
        plain("text alone, and somewhat more"),
    ]
    lengths = lengths_of(documents)
    rows = [[Piece(0, i, 0, int(length) - 1)] for i, length in enumerate(lengths.tokens_E)]
    batch = Assembler([lengths], BUDGETS._replace(tokens=tokens), IMAGE)(rows).batch
    positions = np.zeros((*batch.slots_BT.shape, axes), np.int32)
    blocks = np.zeros_like(batch.blocks_BT)
    for b, slots in enumerate(batch.slots_BT):
        at, block, inside = 0, 0, 0
        for t in np.flatnonzero(batch.text.segments[b]):
            if slots[t] < 0:
                at, inside = at + (2 if inside and axes > 1 else 0), 0  # past the image's rows
                positions[b, t] = at
                at += 1
                continue
            block += not inside
            blocks[b, t] = block
            positions[b, t] = at if axes == 1 else (at, at + inside // 2, at + inside % 2)
            inside += 1
            at += axes == 1
    return batch._replace(text=batch.text._replace(positions=positions), blocks_BT=blocks)


def row_of(batch: Batch, b: int) -> Batch:
    return jax.tree.map(lambda x: x[b : b + 1], batch)


def written_out(batch: Batch, tokens_BW: np.ndarray) -> Batch:
    """The prompts with the answers behind them, as rows of training have them."""
    length = (batch.text.segments > 0).sum(1)
    width = [(0, 0), (0, tokens_BW.shape[1])]
    values, segments, blocks = (np.pad(x, width) for x in (batch.text.values, batch.text.segments, batch.blocks_BT))
    slots = np.pad(batch.slots_BT, width, constant_values=-1)
    positions = np.pad(batch.text.positions, [*width, (0, 0)])
    for b, n in enumerate(length):
        here = slice(n, n + tokens_BW.shape[1])
        values[b, here], segments[b, here] = tokens_BW[b], 1
        positions[b, here] = positions[b, :n].max() + 1 + np.arange(tokens_BW.shape[1])[:, None]
    text = batch.text._replace(values=values, segments=segments, positions=positions)
    unused = {name: np.zeros_like(values) for name in ("targets_BT", "sources_BT")}
    return batch._replace(
        text=text, slots_BT=slots, blocks_BT=blocks, weights_BT=np.zeros(values.shape, np.float32), **unused
    )


def whole_logits(spec: ModelSpec, params, batch: Batch, cap: float) -> np.ndarray:
    """Logits (B, T, V) of the training path."""
    hidden, head = jax.jit(lambda p, b: make_model(spec)[1](p, b, Compute()))(params, batch)
    logits = np.asarray(hidden @ head.T)
    return cap * np.tanh(logits / cap) if cap else logits


def cached_logits(spec: ModelSpec, params, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens (B, W), and the logits (B, W, V) they are the largest of."""
    _, apply = make_model(spec)
    size = batch.text.values.shape[1] + ROOM

    @jax.jit
    def run(params, batch):
        def step(carry, _):
            logits, cache = carry
            token = logits.argmax(-1).astype(jnp.int32)
            return apply(params, token, cache, Compute(), method="step"), (token, logits)

        start = apply(params, batch, size, Compute(), method="prefill")
        return jax.lax.scan(step, start, None, WRITTEN)[1]

    tokens, logits = run(params, batch)
    return np.asarray(tokens).T, np.moveaxis(np.asarray(logits), 0, 1)


def assert_cache_changes_nothing(spec: ModelSpec, params, batch: Batch) -> None:
    tokens, logits = cached_logits(spec, params, batch)
    whole = whole_logits(spec, params, written_out(batch, tokens), spec.decoder.logit_softcap)
    for b, n in enumerate((batch.text.segments > 0).sum(1)):
        wanted = whole[b, n - 1 : n - 1 + WRITTEN]
        np.testing.assert_allclose(logits[b], wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))
        np.testing.assert_array_equal(tokens[b], wanted.argmax(-1))


@st.composite
def decoders(draw) -> DecoderSpec:
    kv_heads = draw(st.sampled_from([1, 2]))
    layers = draw(st.integers(1, 3))
    window = draw(st.sampled_from([0, 3, 7]))
    sections = draw(st.sampled_from([(), (2, 1, 1)]))
    offset = draw(st.sampled_from([0.0, 1.0]))
    return DecoderSpec(
        vocab_size=400, width=24, layers=layers, heads=kv_heads * draw(st.integers(1, 3)), kv_heads=kv_heads,
        head_dim=8, mlp=40, tie_embeddings=draw(st.booleans()), window=window,
        global_layers=tuple(draw(st.sets(st.integers(0, layers - 1)))) if window else (),
        local_rope_theta=draw(st.sampled_from([0.0, 100.0])) if window else 0.0,
        bidirectional_blocks=draw(st.booleans()), rope_scaling=draw(st.sampled_from(SCALINGS)),
        rope_sections=sections, rope_interleaved=bool(sections) and draw(st.booleans()),
        qkv_bias=draw(st.booleans()), qk_norm=draw(st.booleans()), post_norms=draw(st.booleans()),
        norm_offset=offset, embed_scale=draw(st.sampled_from([1.0, 4.0])),
        attention_scale=draw(st.sampled_from([0.0, 0.5])), attention_softcap=draw(st.sampled_from([0.0, 2.0])),
        logit_softcap=draw(st.sampled_from([0.0, 3.0])),
    )  # fmt: skip


@hypothesis.settings(max_examples=4)
@hypothesis.given(decoder=decoders(), deep=st.booleans())
def test_greedy_with_a_cache_is_greedy_over_the_whole_row(lengths_of, decoder, deep):
    spec, params = model(decoder, deep)
    assert_cache_changes_nothing(spec, params, prompts(lengths_of, decoder.text_axes))


def test_every_feature_at_once(lengths_of):
    decoder = DecoderSpec(
        vocab_size=400, width=24, layers=3, heads=6, kv_heads=2, head_dim=8, mlp=40, window=4, global_layers=(1,),
        local_rope_theta=100.0, bidirectional_blocks=True, rope_scaling=SCALINGS[1], rope_sections=(2, 1, 1),
        rope_interleaved=True, qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm=True, post_norms=True,
        norm_offset=1.0, embed_scale=4.0, attention_scale=0.5, attention_softcap=2.0, logit_softcap=3.0,
    )  # fmt: skip
    spec, params = model(decoder, deep=True)
    assert_cache_changes_nothing(spec, params, prompts(lengths_of, 3))


def test_two_kinds_of_attention_have_pages_of_their_own_sizes(lengths_of):
    decoder = DecoderSpec(
        vocab_size=400, width=24, layers=5, heads=6, kv_heads=2, head_dim=8, mlp=40, window=4, global_layers=(1, 3, 4),
        mixers=("attention", "global_attention", "attention", *["global_attention"] * 2),
        global_attention=AttentionSizes(3, 12, shared_kv=True), local_rope_theta=100.0, qk_norm=True, value_norm=True,
        rope_scaling=SCALINGS[4], bidirectional_blocks=True, causal_global_layers=True, attention_scale=0.5,
        layer_scale=True, logit_softcap=3.0,
    )  # fmt: skip
    spec, params = model(decoder)
    blocks = params["decoder"]["blocks"]
    assert blocks["global_attention"]["key"]["kernel"].shape == (3, 24, 3, 12)
    assert blocks["attention"]["key"]["kernel"].shape == (2, 24, 2, 8)
    assert "value" not in blocks["global_attention"]
    assert_cache_changes_nothing(spec, params, prompts(lengths_of, 1))


def test_layers_without_keys_see_those_of_an_earlier_layer_of_their_kind(lengths_of):
    """And positions bring numbers of their own to each."""
    decoder = DecoderSpec(
        vocab_size=400, width=24, layers=6, heads=6, kv_heads=2, head_dim=8, mlp=40, window=4, global_layers=(1, 4),
        mixers=("attention", "global_attention", "attention", "attention", "global_attention", "attention"),
        global_attention=AttentionSizes(3, 12), local_rope_theta=100.0, qk_norm=True, value_norm=True,
        handed_layers=3, handed_mlp=56, layer_inputs=6,
    )  # fmt: skip
    assert decoder.places_of_keys().tolist() == [0, 0, 1, 1, 0, 1]
    spec, params = model(decoder)
    blocks = params["decoder"]["blocks"]
    assert blocks["handed_attention"].keys() == {"query", "query_norm", "out"}
    assert blocks["attention"]["key"]["kernel"].shape[0] == blocks["handed_attention"]["query"]["kernel"].shape[0] == 2
    assert blocks["handed_mlp"]["up"]["kernel"].shape == (3, 24, 56)
    assert_cache_changes_nothing(spec, params, prompts(lengths_of, 1))


def test_layers_that_carry_a_state_hold_it_in_the_cache(lengths_of):
    decoder = DecoderSpec(
        vocab_size=400, width=24, layers=6, heads=4, kv_heads=2, head_dim=8, mlp=40, qk_norm=True,
        mixers=("convolution", "attention", "convolution", "convolution", "attention", "convolution"),
        convolution=ConvolutionSpec(24, 4, bias=True),
    )  # fmt: skip
    spec, params = model(decoder)
    assert_cache_changes_nothing(spec, params, prompts(lengths_of, 1))


WINDOWED = DecoderSpec(
    vocab_size=400, width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=40, window=5, global_layers=(1,)
)


def written(generator: Generator, params, batch: Batch, room: int = ROOM, every: int = WRITTEN) -> np.ndarray:
    writing = generator.begin(params, batch, room)
    rows = len(batch.text.values)
    for until in range(every, WRITTEN + every, every):
        writing = generator.go_on(params, writing, np.zeros(rows, bool), min(until, WRITTEN))
    return np.asarray(writing.tokens_BW)[:, :WRITTEN]


def test_prompts_of_different_lengths_are_answered_as_each_alone(lengths_of):
    spec, params = model(WINDOWED)
    generator = Generator(spec, Compute(), ())
    batch = prompts(lengths_of, 1)
    together = written(generator, params, batch)
    assert len({tuple(row) for row in together.tolist()}) == 3
    for b in range(3):
        np.testing.assert_array_equal(written(generator, params, row_of(batch, b)), together[b : b + 1])


@pytest.mark.slow
def test_room_padding_and_the_size_of_steps_change_no_token(lengths_of):
    spec, params = model(WINDOWED)
    generator = Generator(spec, Compute(unroll=2), ())
    wanted = written(generator, params, prompts(lengths_of, 1))
    np.testing.assert_array_equal(written(generator, params, prompts(lengths_of, 1), every=1), wanted)
    np.testing.assert_array_equal(written(generator, params, prompts(lengths_of, 1, tokens=80), room=40), wanted)


def test_an_answer_ends_at_its_stop_token_and_the_others_go_on(lengths_of):
    spec, params = model(WINDOWED)
    batch = prompts(lengths_of, 1)
    free = written(Generator(spec, Compute(), ()), params, batch)
    stop = int(free[0, 2])
    assert stop not in free[1, :5]
    at = free[0].tolist().index(stop)
    found = written(Generator(spec, Compute(), (stop,)), params, batch)
    np.testing.assert_array_equal(found[0, : at + 1], free[0, : at + 1])
    assert set(found[0, at:].tolist()) == {stop}
    np.testing.assert_array_equal(found[1, :5], free[1, :5])


def test_answers_ended_by_the_caller_are_not_written_on(lengths_of):
    spec, params = model(WINDOWED)
    generator = Generator(spec, Compute(), (399,))
    writing = generator.begin(params, prompts(lengths_of, 1), ROOM)
    writing = generator.go_on(params, writing, np.ones(3, bool), WRITTEN)
    assert int(writing.written) == 1


def test_lengths_and_sampling_compile_nothing_again(lengths_of):
    spec, params = model(WINDOWED)
    generator = Generator(spec, Compute(), ())
    batch = prompts(lengths_of, 1)
    written(generator, params, batch)
    compiled = generator._begin._cache_size(), generator._go_on._cache_size()
    shorter = batch.text.segments.copy()
    shorter[:, 5:] = 0
    written(generator, params, batch._replace(text=batch.text._replace(segments=shorter)), every=3)
    assert (generator._begin._cache_size(), generator._go_on._cache_size()) == compiled == (1, 1)


def test_a_cache_too_small_for_the_rows_is_refused(lengths_of):
    spec, params = model(WINDOWED)
    with pytest.raises(ValueError, match="a cache of 47 positions does not hold rows of 48"):
        make_model(spec)[1](params, prompts(lengths_of, 1), 47, Compute(), method="prefill")


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_one_query_meets_its_keys_as_all_together_do(softcap):
    rng = np.random.default_rng(0)
    B, T, H, K, D = 2, 32, 6, 2, 8
    q, k, v = (rng.standard_normal((B, T, heads, D)).astype(np.float32) for heads in (H, K, K))
    start = np.minimum(rng.integers(0, T, (B, T)), np.arange(T)).astype(np.int32)
    end = np.broadcast_to(np.arange(1, T + 1, dtype=np.int32), (B, T))
    whole = attention(q, k, v, (start, end), scale=0.3, softcap=softcap)
    cached = k.swapaxes(1, 2), v.swapaxes(1, 2)
    for t in (0, 5, T - 1):
        here = slice(t, t + 1)
        one = decode_attention(q[:, here], *cached, (start[:, here], end[:, here]), scale=0.3, softcap=softcap)
        np.testing.assert_allclose(one, whole[:, here], atol=1e-5)


def test_the_next_text_position_follows_the_largest_of_the_prompt(lengths_of):
    spec, params = model(dataclasses.replace(WINDOWED, rope_sections=(2, 1, 1)))
    batch = prompts(lengths_of, 3)
    _, cache = make_model(spec)[1](params, batch, 64, Compute(), method="prefill")
    np.testing.assert_array_equal(cache.length_B, (batch.text.segments > 0).sum(1))
    np.testing.assert_array_equal(cache.position_B, batch.text.positions.max((1, 2)) + 1)
    assert (np.asarray(cache.position_B) < np.asarray(cache.length_B)).tolist() == [True, True, False]
