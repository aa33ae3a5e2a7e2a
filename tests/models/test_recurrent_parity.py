"""Recurrent layers against those of ``transformers``: values and gradients of documents, packed here, alone there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmm.models.recurrent import ConvolutionSpec, GatedDeltaNet, GatedDeltaNetSpec, ShortConvolution

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("whole_transformers")]

WIDTH, LENGTHS = 24, (70, 3, 131, 1, 64)


def short_convolution(bias: bool):
    """A layer of theirs, ours, and the parameters of ours that each fused tensor of theirs has, in order."""
    from transformers.models.lfm2.configuration_lfm2 import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    config = Lfm2Config(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, conv_L_cache=4,
        conv_bias=bias, layer_types=["conv"], vocab_size=8, intermediate_size=8,
    )  # fmt: skip
    inputs = "gate_in", "gate_out", "into"
    names = {"in_proj.weight": [f"{name}.kernel" for name in inputs], "out_proj.weight": ["out.kernel"]}
    names |= {"conv.weight": ["kernel"]}
    if bias:
        names |= {"in_proj.bias": [f"{name}.bias" for name in inputs], "out_proj.bias": ["out.bias"]}
        names |= {"conv.bias": ["bias"]}
    ours = ShortConvolution(ConvolutionSpec(WIDTH, kernel=4, bias=bias), rngs=nnx.Rngs(0))
    return Lfm2ShortConv(config, 0), ours, names


def gated_deltanet(key_heads: int):
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    config = Qwen3_5TextConfig(
        hidden_size=WIDTH, num_hidden_layers=1, layer_types=["linear_attention"], linear_num_key_heads=key_heads,
        linear_num_value_heads=4, linear_key_head_dim=10, linear_value_head_dim=7, linear_conv_kernel_dim=4,
        rms_norm_eps=1e-5, vocab_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    parts = "query", "key", "value"
    names = {
        "in_proj_qkv.weight": [f"{part}.kernel" for part in parts],
        "conv1d.weight": [f"{part}_kernel" for part in parts],
        "in_proj_z.weight": ["gate.kernel"], "in_proj_a.weight": ["decay.kernel"], "in_proj_b.weight": ["rate.kernel"],
        "A_log": ["a_log"], "dt_bias": ["dt_bias"], "norm.weight": ["norm.scale"], "out_proj.weight": ["out.kernel"],
    }  # fmt: skip
    ours = GatedDeltaNet(GatedDeltaNetSpec(WIDTH, key_heads, 4, 10, 7, kernel=4, norm_eps=1e-5), rngs=nnx.Rngs(0))
    return Qwen3_5GatedDeltaNet(config, 0), ours, names


def as_theirs(name: str, ours: np.ndarray) -> np.ndarray:
    """One of our parameters in their layout."""
    if ours.ndim == 1:
        return ours
    if not name.endswith(".kernel"):
        return ours.reshape(ours.shape[0], 1, -1).T
    return ours.reshape(-1, WIDTH).T if name == "out.kernel" else ours.reshape(WIDTH, -1).T


def close(found, wanted, tolerance: float, name: str = ""):
    np.testing.assert_allclose(found, wanted, atol=tolerance * max(1, np.abs(wanted).max()), err_msg=name)


@pytest.mark.parametrize(
    ("make", "of"), [(short_convolution, False), (short_convolution, True), (gated_deltanet, 4), (gated_deltanet, 2)]
)
def test_packed_documents_have_the_values_and_gradients_of_transformers(make, of):
    import torch

    theirs, ours, names = make(of)
    theirs = theirs.eval().float()
    rng = np.random.default_rng(0)
    graph, drawn = nnx.split(ours)
    drawn = jax.tree.map(lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32), drawn)
    tree = {".".join(path): leaf for path, leaf in nnx.to_flat_state(drawn)}
    assert sorted(tree) == sorted(part for parts in names.values() for part in parts)
    held = dict(theirs.named_parameters())
    assert set(held) == set(names)
    with torch.no_grad():
        for name, parts in names.items():
            fused = np.concatenate([as_theirs(part, np.asarray(tree[part][...])) for part in parts])
            assert held[name].shape == fused.shape
            held[name].copy_(torch.tensor(fused))

    x, grad = rng.normal(size=(2, 1, sum(LENGTHS), WIDTH)).astype(np.float32)
    segments = np.repeat(np.arange(len(LENGTHS)) + 1, LENGTHS)[None].astype(np.int32)
    out, pull = jax.vjp(jax.jit(lambda params, x: nnx.merge(graph, params)(x, segments)), drawn, x)
    d_params, d_x = pull(grad)

    start = 0
    for length in LENGTHS:
        here = slice(start, start := start + length)
        x_here = torch.tensor(x[:, here], requires_grad=True)
        wanted = theirs(x_here)
        wanted.backward(torch.tensor(grad[:, here]))
        close(out[:, here], wanted.detach().numpy(), 1e-5)
        close(d_x[:, here], x_here.grad.numpy(), 1e-4)
    found = {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(d_params)}
    for name, parts in names.items():
        close(np.concatenate([as_theirs(part, found[part]) for part in parts]), held[name].grad.numpy(), 1e-4, name)
