"""AdamW against its paper's formula in NumPy, Muon against the SVD, the schedules by their corners, and freezing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmm.models.multimodal import kernel_dims
from jaxmm.training.optimizer import decays, make_optimizer, make_schedule


def adamw(params, grads_by_step, rate_of, *, b1, b2, eps, decay, clip, rates):
    """Decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2) after a clip of the global norm, in float64."""
    mean = {k: np.zeros_like(v, np.float64) for k, v in params.items()}
    square = {k: np.zeros_like(v, np.float64) for k, v in params.items()}
    params = {k: np.array(v, np.float64) for k, v in params.items()}
    for t, grads in enumerate(grads_by_step):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        shrink = min(1.0, clip / norm) if clip else 1.0
        for path, g in grads.items():
            mean[path] = b1 * mean[path] + (1 - b1) * g * shrink
            square[path] = b2 * square[path] + (1 - b2) * (g * shrink) ** 2
            step = (mean[path] / (1 - b1 ** (t + 1))) / (np.sqrt(square[path] / (1 - b2 ** (t + 1))) + eps)
            if path[-1] in ("kernel", "head"):
                step += decay * params[path]
            params[path] -= rate_of(t) * rates.get(path[0], 1.0) * step
    return params


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_updates_are_those_of_the_paper(clip):
    rng = np.random.default_rng(0)
    paths = [("vision", "kernel"), ("vision", "scale"), ("decoder", "embedding"), ("decoder", "head")]
    params = {path: rng.normal(size=(3, 4)).astype(np.float32) for path in paths}
    grads = [{path: rng.normal(size=(3, 4)).astype(np.float32) for path in paths} for _ in range(4)]
    options = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "clip": clip, "rates": {"vision": 0.1}}
    schedule = make_schedule(rate=0.01, steps=10, warmup=3)
    optimizer = make_optimizer(schedule, weight_decay=0.1, **options)

    def tree(flat):
        return {part: {name: flat[p, name] for p, name in paths if p == part} for part in ("vision", "decoder")}

    found, state = tree(params), optimizer.init(tree(params))
    for step in grads:
        updates, state = optimizer.update(tree(step), state, found)
        found = optax.apply_updates(found, updates)
    wanted = adamw(params, grads, schedule, decay=0.1, **options)
    for part, name in paths:
        np.testing.assert_allclose(found[part][name], wanted[part, name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ins", "outs", "shape"), [((0,), (1,), (6, 16)), ((1, 2), (3,), (3, 2, 4, 5))])
def test_muon_steps_are_orthogonal_maps_of_the_size_of_adamw_s(ins, outs, shape):
    """All singular values of a step are about equal, its singular vectors the gradient's (Jordan et al., 2024)."""
    rng = np.random.default_rng(0)
    params = {"decoder": {"kernel": np.zeros(shape, np.float32), "bias": np.zeros(4, np.float32)}}
    grads = {"decoder": {name: rng.normal(size=x.shape).astype(np.float32) for name, x in params["decoder"].items()}}
    schedule = make_schedule(rate=0.1, steps=10, warmup=0, name="constant")
    maps = {("decoder", "kernel"): (ins, outs)}
    optimizer = make_optimizer(schedule, clip=0.0, weight_decay=0.0, kernel_dims=maps, rates={"decoder": 0.5})
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["decoder"]["bias"], -0.05 * np.sign(grads["decoder"]["bias"]), rtol=1e-4)

    layers = 1 if 0 in ins else shape[0]
    flat = (layers, int(np.prod([shape[d] for d in ins])), int(np.prod([shape[d] for d in outs])))
    steps, gradients = (np.asarray(tree["decoder"]["kernel"]).reshape(flat) for tree in (updates, grads))
    for step, gradient in zip(steps / (-0.05 * 0.2 * max(flat[1:]) ** 0.5), gradients, strict=True):
        u, _, vt = np.linalg.svd(gradient, full_matrices=False)
        inner = u.T @ step @ vt.T
        assert (np.diag(inner) > 0.6).all()
        assert (np.diag(inner) < 1.3).all()
        np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-3)
        assert step.std() * 0.2 * max(flat[1:]) ** 0.5 == pytest.approx(0.2, rel=0.3)  # AdamW's size


def test_muon_takes_every_linear_map_of_the_model_and_nothing_else(tiny):
    paths = {tuple(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(tiny.params)[0]}
    maps = kernel_dims(tiny.spec)
    assert set(maps) == {path for path in paths if path[-1] == "kernel"}
    assert maps["decoder", "blocks", "attention", "out", "kernel"] == ((1, 2), (3,))
    assert maps["connector", "up", "kernel"] == ((0,), (1,))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_part_without_any_gradient_stays_as_it_is_and_its_momentum_does_not_move_it(name):
    params = {part: {"kernel": jax.random.normal(jax.random.key(n), (4, 4))} for n, part in enumerate(("a", "b"))}
    maps = {(part, "kernel"): ((0,), (1,)) for part in params} if name == "muon" else None
    schedule = make_schedule(rate=0.1, steps=10, warmup=0, name="constant")
    optimizer = make_optimizer(schedule, weight_decay=0.5, kernel_dims=maps)
    state, none = optimizer.init(params), jax.tree.map(jnp.zeros_like, params["a"])
    for gradients in (params, params | {"a": none}, params | {"a": none}):
        updates, state = jax.jit(optimizer.update)(gradients, state, params)
        assert float(jnp.abs(updates["b"]["kernel"]).min()) > 0
        assert bool((updates["a"]["kernel"] == 0).all()) == (gradients["a"] is none)


def rates(**options) -> np.ndarray:
    schedule = make_schedule(**{"rate": 1.0, "steps": 100, "warmup": 10, **options})
    return np.array([float(schedule(i)) for i in range(options.get("steps", 100))])


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
def test_every_schedule_rises_linearly_to_its_peak(name):
    found = rates(name=name)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert found.max() == pytest.approx(1)


def test_cosine_falls_to_its_end_and_passes_the_middle_half_way():
    found = rates(name="cosine", end_factor=0.1)
    assert found[55] == pytest.approx(0.55, abs=1e-3)
    assert found[-1] == pytest.approx(0.1, abs=2e-3)
    assert (np.diff(found[10:]) < 0).all()


def test_wsd_holds_its_peak_and_falls_linearly_over_its_last_part():
    found = rates(name="wsd", decay_fraction=0.2)
    np.testing.assert_allclose(found[10:81], 1)
    np.testing.assert_allclose(np.diff(found[80:]), -1 / 20, rtol=1e-4)


def test_constant_stays_and_a_warmup_longer_than_the_run_is_cut():
    np.testing.assert_allclose(rates(name="constant")[10:], 1)
    assert rates(steps=5, warmup=50)[-1] == pytest.approx(1)
    assert rates(steps=5, warmup=0)[0] == pytest.approx(1)


def test_a_schedule_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="schedule 'linear' is not one of cosine, wsd, constant"):
        make_schedule(rate=1, steps=1, warmup=0, name="linear")


def test_decay_applies_to_matrices_and_the_projection_alone(tiny):
    leaves = jax.tree_util.tree_flatten_with_path(tiny.params)[0]
    names = {True: set(), False: set()}
    for path, _ in leaves:
        names[decays(path)].add(path[-1].key)
    assert names[True] == {"kernel", "head"}
    assert names[False] == {"bias", "scale", "embedding", "position_embedding"}
