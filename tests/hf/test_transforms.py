"""Named transforms: there and back is the identity, to the bit, for any shape."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxmm.hf.transforms import TRANSFORMS, foreign_shapes, into_parts, out_of_parts

sizes = st.integers(1, 4)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@hypothesis.given(sizes, sizes, sizes, sizes)
def test_a_linear_map_is_turned_round_and_its_heads_are_taken_apart(D, H, d, out):
    foreign = numbers(H * d, D)
    (ours,) = into_parts(foreign, "transpose", [(D, H, d)])
    x = numbers(D)
    np.testing.assert_allclose(np.einsum("i,ihd->hd", x, ours).ravel(), foreign @ x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out_of_parts([ours], "transpose", inputs=1), foreign)
    foreign = numbers(out, H * d)  # the map that leads out takes two dims in
    (ours,) = into_parts(foreign, "transpose", [(H, d, out)])
    np.testing.assert_array_equal(out_of_parts([ours], "transpose", inputs=2), foreign)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 2)])
def test_a_convolution_of_sound_is_turned_round(shape):
    foreign = numbers(*shape)
    (ours,) = into_parts(foreign, "reversed", [shape[::-1]])
    assert foreign_shapes("reversed", [ours.shape]) == [shape]
    assert ours[(1, 0, 3, 2)[-len(shape) :]] == foreign[(1, 0, 3, 2)[-len(shape) :][::-1]]
    np.testing.assert_array_equal(out_of_parts([ours], "reversed", inputs=len(shape) - 1), foreign)


@hypothesis.given(sizes, sizes, sizes)
def test_fused_queries_keys_and_values_are_taken_apart_in_order(D, H, d):
    foreign = numbers(3 * H * d, D)
    ours = into_parts(foreign, "transpose", [(D, H, d)] * 3)
    for part, wanted in zip(ours, np.split(foreign, 3), strict=True):
        np.testing.assert_array_equal(part.reshape(D, -1), wanted.T)
    np.testing.assert_array_equal(out_of_parts(ours, "transpose", inputs=1), foreign)


@hypothesis.given(sizes, sizes, sizes, sizes, sizes)
def test_fused_parts_may_be_of_different_sizes(D, H, d, K, v):
    foreign, shapes = numbers(2 * H * d + K * v, D), [(D, H, d), (D, H, d), (D, K, v)]
    assert foreign.shape in foreign_shapes("transpose", shapes)
    ours = into_parts(foreign, "transpose", shapes)
    for part, wanted in zip(ours, np.split(foreign, [H * d, 2 * H * d]), strict=True):
        np.testing.assert_array_equal(part.reshape(D, -1), wanted.T)
    np.testing.assert_array_equal(out_of_parts(ours, "transpose", inputs=1), foreign)


@hypothesis.given(sizes, sizes, sizes)
def test_queries_and_gates_are_taken_apart_head_by_head(D, H, d):
    foreign, shapes = numbers(H * 2 * d, D), [(D, H, d)] * 2
    assert foreign.shape in foreign_shapes("transpose by heads", shapes)
    queries, gates = into_parts(foreign, "transpose by heads", shapes)
    x = numbers(D)
    mapped = (foreign @ x).reshape(H, 2 * d)
    for part, wanted in ((queries, mapped[:, :d]), (gates, mapped[:, d:])):
        np.testing.assert_allclose(np.einsum("i,ihd->hd", x, part), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out_of_parts([queries, gates], "transpose by heads", inputs=1), foreign)


@hypothesis.given(sizes, st.lists(st.tuples(sizes, sizes), min_size=1, max_size=3))
def test_a_convolution_of_each_channel_by_itself_is_turned_round(K, heads):
    foreign = numbers(sum(H * d for H, d in heads), 1, K)
    shapes = [(K, H, d) for H, d in heads]
    assert foreign.shape in foreign_shapes("depthwise", shapes)
    ours = into_parts(foreign, "depthwise", shapes)
    np.testing.assert_array_equal(np.concatenate([part.reshape(K, -1) for part in ours], 1), foreign[:, 0].T)
    np.testing.assert_array_equal(out_of_parts(ours, "depthwise"), foreign)


@pytest.mark.parametrize("parts", [1, 2])
def test_maps_of_experts_lie_side_by_side_and_are_read_either_way(parts):
    foreign = numbers(4, 3, 5 * parts)
    shapes = [(4, 3, 5)] * parts
    assert set(foreign_shapes("side by side", shapes)) == {(4, 3, 5 * parts), (4, 5 * parts, 3)}
    ours = into_parts(foreign, "side by side", shapes)
    for part, wanted in zip(ours, np.split(foreign, parts, axis=2), strict=True):
        np.testing.assert_array_equal(part, wanted)
    for one, other in zip(ours, into_parts(foreign.swapaxes(1, 2), "side by side", shapes), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(out_of_parts(ours, "side by side", inputs=1), foreign)


@pytest.mark.parametrize("parts", [1, 2])
def test_maps_of_experts_lie_one_above_the_other(parts):
    foreign, shapes = numbers(4, 5 * parts, 3), [(4, 3, 5)] * parts
    assert foreign_shapes("one above the other", shapes) == [(4, 5 * parts, 3)]
    ours = into_parts(foreign, "one above the other", shapes)
    for part, wanted in zip(ours, np.split(foreign, parts, axis=1), strict=True):
        np.testing.assert_array_equal(part, wanted.swapaxes(1, 2))
    np.testing.assert_array_equal(out_of_parts(ours, "one above the other", inputs=1), foreign)


@pytest.mark.parametrize("frames", [(), (2,)])
@hypothesis.given(sizes, st.integers(1, 3))
def test_a_convolution_is_a_linear_map_of_patches_with_channels_last(frames, D, side):
    foreign = numbers(D, 3, *frames, side, side)
    (ours,) = into_parts(foreign, "convolution", [(*frames, side * side * 3, D)])
    patch = numbers(*frames, side, side, 3)
    found = np.tensordot(patch.reshape(*frames, -1), ours, axes=len(frames) + 1)
    wanted = np.tensordot(np.moveaxis(patch, -1, 0), foreign, axes=(range(patch.ndim), range(1, foreign.ndim)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out_of_parts([ours], "convolution"), foreign)


@hypothesis.given(sizes, sizes, sizes)
def test_unfolded_patches_are_a_linear_map_of_patches_with_channels_last(G, D, out):
    foreign = numbers(out, D * G)  # of each channel all patches, as torch's unfold has them
    assert foreign_shapes("unfolded", [(G, D, out)]) == [foreign.shape]
    (ours,) = into_parts(foreign, "unfolded", [(G, D, out)])
    patches = numbers(G, D)
    np.testing.assert_allclose(np.tensordot(patches, ours, 2), foreign @ patches.T.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out_of_parts([ours], "unfolded", inputs=2), foreign)


@hypothesis.given(st.integers(1, 3), sizes, sizes)
def test_a_convolution_of_patches_is_a_linear_map_of_them_row_by_row(side, D, out):
    foreign = numbers(out, D, side, side)
    assert foreign_shapes("convolution of patches", [(side**2, D, out)]) == [foreign.shape]
    (ours,) = into_parts(foreign, "convolution of patches", [(side**2, D, out)])
    patches = numbers(side, side, D)
    wanted = np.einsum("odij,ijd->o", foreign, patches)
    np.testing.assert_allclose(np.tensordot(patches.reshape(side**2, D), ours, 2), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out_of_parts([ours], "convolution of patches", inputs=2), foreign)


@pytest.mark.parametrize("frames", [1, 2])
def test_one_frame_of_video_is_a_dim_of_its_own_and_no_dim_of_ours(frames):
    foreign, shape = numbers(5, 3, frames, 2, 2), (frames, 12, 5)[frames == 1 :]
    (ours,) = into_parts(foreign, "convolution of frames", [shape])
    np.testing.assert_array_equal(out_of_parts([ours], "convolution of frames"), foreign)
    (wanted,) = into_parts(foreign[:, :, 0], "convolution", [(12, 5)])
    np.testing.assert_array_equal(ours.reshape(frames, 12, 5)[0], wanted)


@pytest.mark.parametrize(
    ("name", "foreign", "ours"),
    [
        ("copy", (3, 4), (3, 4)),
        ("flat", (12,), (3, 4)),
        ("after one", (1, 3, 4), (3, 4)),
        ("after two", (1, 1, 4), (1, 4)),
    ],
)
def test_the_others_only_change_the_shape(name, foreign, ours):
    array = numbers(*foreign)
    (found,) = into_parts(array, name, [ours])
    assert found.shape == ours
    np.testing.assert_array_equal(out_of_parts([found], name), array)


def test_all_of_them_are_tested_here():
    assert set(TRANSFORMS) == {
        "copy",
        "flat",
        "after one",
        "after two",
        "transpose",
        "transpose by heads",
        "depthwise",
        "reversed",
        "unfolded",
        "convolution of patches",
        "side by side",
        "one above the other",
        "convolution",
        "convolution of frames",
    }


@pytest.mark.parametrize(
    ("name", "ours", "fitting", "others"),
    [
        ("copy", [(3, 4)], [(3, 4)], [(4, 3), (12,), ()]),
        ("flat", [(3, 4)], [(12,)], [(3, 4)]),
        ("transpose", [(5, 2, 3)], [(6, 5), (3, 10)], [(5, 6), (30,), (5, 2, 3)]),
        ("transpose", [(5, 2, 3)] * 3, [(18, 5), (9, 10)], [(6, 5), (5, 18), (17, 5)]),
        ("convolution", [(12, 7)], [(7, 3, 2, 2)], [(7, 2, 2, 3), (7, 12), (7, 3, 1, 2, 2)]),
        ("convolution of frames", [(12, 7)], [(7, 3, 1, 2, 2)], [(7, 3, 2, 2)]),
        ("convolution of frames", [(2, 12, 7)], [(7, 3, 2, 2, 2)], [(7, 3, 1, 2, 2)]),
    ],
)
def test_a_tensor_of_another_shape_does_not_fit_be_its_size_the_same(name, ours, fitting, others):
    assert set(fitting) == set(foreign_shapes(name, ours))
    assert not set(others) & set(fitting)
