"""What is written and what is made again: the same gradients, for less memory and less work."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.models.layers import ACTIVATIONS
from jaxmm.models.materialize import materialize, recompute
from jaxmm.runtime.jax_internals import step_options

LAYERS, ROWS, WIDTH = 8, 256, 64


def gradient(layer):
    """The gradient of a stack of layers' weights, with what its compiled program needs."""

    def loss(weights, x):
        for weight in weights:
            x = layer(x, weight)
        return jnp.square(x).sum()

    keys = jax.random.split(jax.random.key(0), LAYERS + 1)
    weights = [jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH for key in keys[1:]]
    x = jax.random.normal(keys[0], (ROWS, WIDTH))
    compiled = jax.jit(jax.grad(loss)).lower(weights, x).compile(step_options())
    return np.stack(compiled(weights, x)), compiled


def most_additions(compiled):
    """In one fused loop."""
    fused = re.findall(r"%fused_computation[\w.]* \(.*?\n\}", compiled.as_text(), re.DOTALL)
    return max(loop.count(" add(") for loop in fused)


def test_the_cotangent_of_a_residual_stream_is_summed_once():
    def layer(x, weight):
        return x + jnp.sin((x - x.mean(-1, keepdims=True)) @ weight) @ weight

    plain, of_all_layers = gradient(layer)
    found, of_one = gradient(lambda x, weight: materialize(layer(x, weight)))
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)
    assert most_additions(of_all_layers) > LAYERS
    assert most_additions(of_one) <= 3


def test_what_is_made_again_is_not_kept():
    def hidden(up, gate):
        return ACTIVATIONS["silu"](gate) * up

    def layer(hidden):
        return lambda x, weight: hidden(x @ weight, x @ weight.T) @ weight

    plain, large = gradient(layer(hidden))
    found, compiled = gradient(layer(recompute(hidden)))
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
    of = lambda program: program.memory_analysis().temp_size_in_bytes  # noqa: E731
    assert of(compiled) < 0.9 * of(large)
