"""Audio towers against ``transformers``: clips packed in a row, features and gradients of every tensor."""

from __future__ import annotations

import numpy as np
import pytest
from audio_streams import SILENCE, clips_of, stream_of

pytestmark = pytest.mark.parity

SIZES = {
    "num_mel_bins": 20, "encoder_layers": 3, "encoder_attention_heads": 3, "encoder_ffn_dim": 40, "d_model": 24,
}  # fmt: skip
LENGTHS = (37, 100, 1, 250, 117, 60, 118, 3, 119, 120, 2)


def qwen2():
    from transformers import Qwen2AudioEncoderConfig
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

    return Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**SIZES, max_source_positions=60))


def whisper():
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(WhisperConfig(**SIZES, max_source_positions=60))


def qwen3():
    from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig
    from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder

    return Qwen3ASREncoder(Qwen3ASREncoderConfig(**SIZES, downsample_hidden_size=10, n_window_infer=200))


def of_piece(model, clip):
    """What Qwen2-Audio or Whisper makes of a piece of up to 120 frames: its soft tokens."""
    import torch

    frames = torch.full((1, clip.shape[1], 120), SILENCE)
    frames[0, :, : len(clip)] = torch.tensor(clip.T)
    if type(model).__name__ == "WhisperEncoder":
        return model(frames).last_hidden_state[0]
    seen, soft_tokens = model._get_feat_extract_output_lengths(torch.tensor(len(clip)))
    mask = torch.zeros(1, 1, 60, 60)
    mask[..., seen:] = torch.finfo(torch.float32).min
    return model(frames, attention_mask=mask).last_hidden_state[0, :soft_tokens]


def of_chunks(model, clip):
    """What Qwen3-ASR makes of a clip: its soft tokens."""
    import torch
    from transformers.models.qwen3_asr.modeling_qwen3_asr import _get_feat_extract_output_lengths

    padded = -(-len(clip) // 100) * 100
    frames, mask = torch.zeros(1, clip.shape[1], padded), torch.zeros(1, padded, dtype=torch.long)
    frames[0, :, : len(clip)], mask[0, : len(clip)] = torch.tensor(clip.T), 1
    found = model(frames, mask).last_hidden_state
    assert len(found) == _get_feat_extract_output_lengths(torch.tensor(len(clip)))
    return found


@pytest.mark.parametrize(("make", "run"), [(qwen2, of_piece), (whisper, of_piece), (qwen3, of_chunks)])
@pytest.mark.usefixtures("whole_transformers")
def test_packed_clips_give_the_features_and_gradients_of_transformers(make, run, tmp_path):
    import jax
    import safetensors.torch
    import torch

    from jaxmm import sharding
    from jaxmm.hf import weights
    from jaxmm.hf.audio_towers import audio_tower_of
    from jaxmm.hf.tensor_files import Checkpoint
    from jaxmm.models.connector import ConnectorSpec
    from jaxmm.models.decoder import DecoderSpec
    from jaxmm.models.multimodal import Compute, ModelSpec, flat_axes, kernel_dims, nested
    from jaxmm.models.towers.audio import AudioTower as Tower

    torch.manual_seed(0)
    model = make().eval().requires_grad_(True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    spec, audio, rules = audio_tower_of(model.config)
    encoder = {f"audio_tower.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(encoder, tmp_path / "model.safetensors")

    whole = ModelSpec(None, None, DecoderSpec(), spec, ConnectorSpec(merge=1))
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    wanted = {path: (shape, where) for path, (shape, _) in flat_axes(whole).items() if path[0] == "audio"}
    flat, spare = weights.read_params(Checkpoint(tmp_path), rules, wanted)
    assert spare == []

    lengths = [n for n in LENGTHS if n <= 120 or not audio.piece]
    clips = clips_of(lengths, spec.mels)
    stream, rows = stream_of(clips, audio)

    from flax import nnx

    def features(params):
        tower = nnx.eval_shape(lambda: Tower(spec, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(tower)
        nnx.replace_by_pure_dict(state, params["audio"])
        return nnx.merge(graph, state)(stream, Compute())[0, np.concatenate(rows)]

    ours = np.asarray(jax.jit(features)(nested(flat)))
    theirs = torch.cat([run(model, clip) for clip in clips])
    assert ours.shape == theirs.shape
    apart = np.abs(ours - theirs.detach().numpy()).max()

    theirs.square().sum().backward()
    gradients = jax.jit(jax.grad(lambda params: jax.numpy.square(features(params)).sum()))(nested(flat))
    own = {
        ("audio", *map(str, path)): value for path, value in nnx.traversals.flatten_mapping(gradients["audio"]).items()
    }
    inputs = {path: len(dims) for path, (dims, _) in kernel_dims(whole).items()}
    written = {tensor.name: tensor.make() for tensor in weights.outgoing(own, rules, inputs, np.float32)}
    expected = {f"audio.{name}": p.grad.numpy() for name, p in model.named_parameters()}
    assert written.keys() == expected.keys()
    floor = 1e-3 * max(np.abs(g).max() for g in expected.values())
    worst = max(np.abs(written[n] - g).max() / max(np.abs(g).max(), floor) for n, g in expected.items())
    print(f"{type(model).__name__}: features {apart:.1e}, gradients {worst:.1e}")
    assert apart <= 1e-5
    assert worst <= 1e-3

    back = {tensor.name: tensor.make() for tensor in weights.outgoing(flat, rules, inputs, np.float32)}
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(back[f"audio.{name}"], tensor.numpy())
