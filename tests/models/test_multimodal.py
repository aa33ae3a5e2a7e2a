"""Packed equals alone: nothing of a document reaches another one in its row, forward or backward."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from conftest import IMAGE, Tiny, chat, picture, plain, random_documents, rows_of

from jaxmm.batch import Batch
from jaxmm.data.assemble import Assembler
from jaxmm.data.packing.plan import Budgets, Lengths, Piece, Row, pack
from jaxmm.models.flops import parameter_counts
from jaxmm.models.multimodal import Compute, abstract_params, logical_axes, make_model
from jaxmm.training.loss import batch_loss, from_hidden

ROWS = 2
BUDGETS = Budgets(tokens=160, patches=160, items=8, targets=160)


@pytest.fixture(scope="module")
def run(tiny: Tiny):
    """``run(batch) -> (hidden, logits, parameter gradients of the summed loss)``: compiled once for all tests here."""

    def loss(params, batch):
        hidden, head = tiny.forward(params, batch)
        return batch_loss(from_hidden(hidden, head), batch, BUDGETS.targets, 1e-3)[0], (hidden, hidden @ head.T)

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def run(batch: Batch):
        (_, (hidden, logits)), grads = both(tiny.params, batch)
        return np.asarray(hidden), np.asarray(logits), jax.tree.map(np.asarray, grads)

    return run


def packed(lengths: Lengths) -> list[Row]:
    """As many of the documents as fit ROWS rows, by the plan's own packing."""
    needs = lengths.needs(np.arange(len(lengths)))
    rows = pack(needs, BUDGETS)[:ROWS]
    rows += [[] for _ in range(ROWS - len(rows))]
    return rows_of(lengths, *rows)


def places(rows: list[Row]):
    """(example, row, slice) of each document."""
    for b, row in enumerate(rows):
        at = 0
        for piece in row:
            yield piece, b, slice(at, at + piece.last)
            at += piece.last


def assert_close(found, wanted, tolerance: float, scale: float = 0.0):
    """Equal relative to the scale of the whole array, or to a larger one."""
    assert np.abs(found - wanted).max() <= tolerance * max(np.abs(wanted).max(), scale)


@hypothesis.settings(max_examples=8)
@hypothesis.given(seed=st.integers(0, 1 << 30), count=st.integers(2, 9))
def test_packed_documents_give_the_logits_and_gradients_of_the_same_documents_alone(run, lengths_of, seed, count):
    lengths = lengths_of(random_documents(count, seed))
    assemble = Assembler([lengths], BUDGETS, IMAGE)
    rows = packed(lengths)
    _, logits, grads = run(assemble(rows).batch)
    alone_grads = []
    for piece, b, here in places(rows):
        _, alone_logits, alone = run(assemble([[piece], *[[]] * (ROWS - 1)]).batch)
        assert_close(logits[b, here], alone_logits[0, : piece.last], 1e-5)
        alone_grads.append(alone)
    summed = jax.tree.map(lambda *each: functools.reduce(np.add, each), *alone_grads)
    # The gradient of a key's bias is 0 but for rounding: no leaf is held to less than a hundredth of the largest.
    scale = 1e-2 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(summed))
    jax.tree.map(lambda found, wanted: assert_close(found, wanted, 1e-5, scale), grads, summed)


@hypothesis.settings(max_examples=8)
@hypothesis.given(seed=st.integers(0, 1 << 30), count=st.integers(3, 9))
def test_changing_one_document_changes_no_other_by_a_bit(run, lengths_of, seed, count):
    lengths = lengths_of(random_documents(count, seed))
    rows = packed(lengths)
    batch = Assembler([lengths], BUDGETS, IMAGE)(rows).batch
    spots = list(places(rows))
    piece, b, here = spots[seed % len(spots)]
    rng = np.random.default_rng(seed)
    values, pixels = batch.text.values.copy(), batch.patches.values.copy()
    values[b, here] = rng.integers(0, 300, piece.last)
    slots = batch.slots_BT[b, here]
    for slot in slots[slots >= 0]:
        pixels[b, 4 * slot : 4 * slot + 4] = rng.integers(0, 256, (4, pixels.shape[-1]))
    changed = batch._replace(text=batch.text._replace(values=values), patches=batch.patches._replace(values=pixels))
    hidden, other = run(batch)[0], run(changed)[0]
    for piece_i, row, where in spots:
        if piece_i is piece:
            assert not np.array_equal(hidden[row, where], other[row, where])
        else:
            np.testing.assert_array_equal(hidden[row, where], other[row, where])


def test_the_decoder_looks_at_the_image(run, lengths_of):
    """Pixels change what stands after the image, and not what stands before it."""
    outputs = []
    for seed in (1, 2):
        lengths = lengths_of([plain("before", picture(16, 16, seed), "after")])
        batch = Assembler([lengths], BUDGETS, IMAGE)([[Piece(0, 0, 0, int(lengths.tokens_E[0]))], []]).batch
        outputs.append(run(batch)[0][0])
    first, second = outputs
    np.testing.assert_array_equal(first[:7], second[:7])  # the text and <|image_start|>
    assert np.abs(first[7:15] - second[7:15]).max(-1).min() > 1e-4


@pytest.mark.parametrize(
    ("changes", "remat"),
    [
        pytest.param({}, "full", marks=pytest.mark.slow),
        pytest.param({"layers": 1}, "none", marks=pytest.mark.slow),
        ({"window": 8, "global_layers": (0,)}, "dots"),
    ],
)
def test_a_last_layer_on_targets_alone_gives_the_losses_and_gradients_of_one_on_all_positions(
    tiny, lengths_of, changes, remat
):
    spec = dataclasses.replace(tiny.spec, decoder=dataclasses.replace(tiny.spec.decoder, **changes))
    decoder = {**tiny.params["decoder"]}
    decoder["blocks"] = jax.tree.map(lambda x: x[: spec.decoder.layers], decoder["blocks"])
    params = {**tiny.params, "decoder": decoder}
    _, apply = make_model(spec)
    lengths = lengths_of([chat((picture(16, 24, seed), "which one"), "this") for seed in range(4)])
    batch = Assembler([lengths], BUDGETS, IMAGE)(packed(lengths)).batch
    targets = int((batch.weights_BT > 0).sum(1).max()) + 3  # and some that are none

    def at_targets(params):
        hidden_at = functools.partial(apply, params, batch, Compute(unroll=2, remat=remat))
        return batch_loss(hidden_at, batch, targets, 1e-3)[0]

    def everywhere(params):
        return batch_loss(from_hidden(*apply(params, batch, Compute())), batch, targets, 1e-3)[0]

    def flops(target_positions_BR: jax.Array | None) -> float:
        forward = jax.jit(lambda params: apply(params, batch, Compute(unroll=2), target_positions_BR)[0])
        return forward.lower(params).cost_analysis()["flops"]

    (loss, grads), (whole_loss, whole) = (jax.jit(jax.value_and_grad(f))(params) for f in (at_targets, everywhere))
    np.testing.assert_allclose(loss, whole_loss, rtol=1e-6)
    scale = 1e-2 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-5, scale), grads, whole)
    saved = 2 * ROWS * (BUDGETS.tokens - targets) * (3 * 32 * 48 + 32 * 32)  # of the MLP, and of attention's way out
    assert flops(np.zeros((ROWS, targets), np.int32)) < flops(None) - 0.95 * saved


def test_every_parameter_of_a_packed_batch_gets_a_gradient(run, lengths_of):
    lengths = lengths_of(random_documents(8, 5))
    *_, grads = run(Assembler([lengths], BUDGETS, IMAGE)(packed(lengths)).batch)
    dead = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_flatten_with_path(grads)[0] if not np.any(g)]
    # The softmax does not see what is added to every logit of a query: a key bias has no effect, by nature.
    assert [path for path in dead if "key" not in path] == []


def test_padding_rows_and_text_alone_give_finite_numbers(run, lengths_of):
    lengths = lengths_of([plain("only text")])
    batch = Assembler([lengths], BUDGETS, IMAGE)([[Piece(0, 0, 0, int(lengths.tokens_E[0]))], []]).batch
    hidden, logits, grads = run(batch)
    assert np.isfinite(hidden).all()
    assert np.isfinite(logits).all()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not any(np.any(g) for g in jax.tree.leaves((grads["vision"], grads["connector"])))


def test_the_tree_of_logical_axes_is_the_tree_of_parameters(tiny):
    axes = logical_axes(tiny.spec)
    assert set(tiny.params) == set(tiny.spec.parts)

    def is_leaf(x):
        return isinstance(x, tuple)

    described = jax.tree.leaves(axes, is_leaf=is_leaf)
    arrays = jax.tree.leaves(tiny.params)
    assert jax.tree.structure(axes, is_leaf=is_leaf) == jax.tree.structure(tiny.params)
    for array, (shape, names) in zip(arrays, described, strict=True):
        assert array.shape == shape
        assert len(names) == len(shape)
    assert sum(parameter_counts(tiny.params).values()) == sum(a.size for a in arrays)


@pytest.mark.slow
def test_initialisation_is_a_function_of_the_key_alone(tiny):
    init = jax.jit(make_model(tiny.spec)[0])
    first, same, other = init(jax.random.key(0)), init(jax.random.key(0)), init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    assert jax.tree.map(np.shape, first) == jax.tree.map(np.shape, tiny.params)
    assert not np.array_equal(first["decoder"]["embedding"], other["decoder"]["embedding"])
    layers = np.asarray(first["decoder"]["blocks"]["mlp"]["up"]["kernel"])
    assert not np.array_equal(layers[0], layers[1]), "stacked layers start from different numbers"


def test_shapes_of_parameters_are_known_without_tracing(tiny):
    init, _ = make_model(tiny.spec)
    assert abstract_params(tiny.spec) == jax.eval_shape(init, jax.random.key(0))
