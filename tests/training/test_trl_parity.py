"""Losses and their slopes are TRL's own, of any log-probabilities: no formula of ours is on the other side."""

from __future__ import annotations

import collections
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.batch import Pairs
from jaxmm.training.preference import PreferenceSpec, Said, divergence, losses

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("whole_transformers")]
PAIRS, LONGEST = 6, 9
TOKENS = np.array([[9, 4], [3, 8], [5, 5], [1, 7], [6, 2], [2, 9]])  # of both answers
IS_WANTED = np.array([True, False, True, True, False, True])


def by_token(seed: int, scale: float = 1.0) -> np.ndarray:
    """(PAIRS, 2, LONGEST): log-probabilities of each token, 0 behind an answer's end."""
    drawn = -scale * np.random.default_rng(seed).random((PAIRS, 2, LONGEST)) - 0.05
    return np.where(np.arange(LONGEST) < TOKENS[..., None], drawn, 0.0)


POLICY, REFERENCE = by_token(1), by_token(2, 1.2)


def of_ours(spec: PreferenceSpec) -> tuple[float, np.ndarray]:
    """The mean loss, and its slope by what the policy says of each answer, (PAIRS, 2)."""
    verdicts = np.where(IS_WANTED, 2, 3) if spec.judges else np.ones(PAIRS)
    ones = np.ones((1, PAIRS))
    pairs = Pairs(ones.astype(np.int32), verdicts[None].astype(np.int32), ones, ones * 0, np.zeros((1, PAIRS, 2)))
    policy, reference = (Said(jnp.array(x.sum(-1))[None], jnp.array(TOKENS)[None]) for x in (POLICY, REFERENCE))
    kl: Any = 0.0
    if spec.judges:
        total, count = divergence(policy, reference, pairs, spec)
        kl = jnp.maximum(total / count, 0)

    def mean(logps: jax.Array) -> jax.Array:
        return losses(policy._replace(logps_BC2=logps), reference, pairs, spec, kl).loss_BC.mean()

    value, slope = jax.value_and_grad(mean)(policy.logps_BC2)
    return float(value), np.asarray(slope[0])


class Spoken:
    """A model that says what it was told, with a gradient, in the place of one of ``transformers``."""

    training = False

    def __init__(self, logps: Any):
        import torch

        self.logps = torch.tensor(logps, requires_grad=True)

    def __call__(self, **_: Any) -> Any:
        import torch

        none = torch.zeros_like(self.logps)
        return types.SimpleNamespace(log_probs=self.logps, entropy=none, mean_logits=none, is_top1=none > 0)


def trainer(**settings: Any) -> Any:
    """What a trainer's loss reads of itself."""
    same = types.SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)
    return types.SimpleNamespace(
        model=types.SimpleNamespace(training=False), accelerator=same, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_weights=[1.0], use_weighting=False,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)), _total_train_tokens=0, **settings,
    )  # fmt: skip


def mask() -> Any:
    """(2 * PAIRS, LONGEST + 1): where answers stand behind one token of a prompt, the first ones before the others."""
    import torch

    lengths = TOKENS.T.reshape(-1, 1)
    places = np.arange(LONGEST + 1)
    return torch.tensor((places > 0) & (places <= lengths)).long()


@pytest.mark.parametrize(("ours", "theirs"), [
    ({"objective": "dpo"}, "sigmoid"),
    ({"objective": "ipo"}, "ipo"),
    ({"objective": "dpo", "is_mean": True}, "sigmoid_norm"),
])  # fmt: skip
def test_losses_of_pairs_next_to_a_reference(ours, theirs):
    import torch
    from trl import DPOTrainer

    spec = PreferenceSpec(**({"beta": 0.3} | ours))
    model = Spoken(POLICY.transpose(1, 0, 2).reshape(2 * PAIRS, LONGEST))
    chosen, rejected = (torch.tensor(REFERENCE[:, side].sum(-1)) for side in (0, 1))
    inputs = {
        "input_ids": torch.zeros(2 * PAIRS, LONGEST + 1, dtype=torch.long), "completion_mask": mask(),
        "attention_mask": mask(), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    one = trainer(loss_types=[theirs], beta=0.3, label_smoothing=0.0)
    loss = DPOTrainer._compute_loss(one, model, inputs, False)
    (slopes,) = torch.autograd.grad(loss, model.logps)
    value, slope = of_ours(spec)
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    first = slopes[:, 0].reshape(2, PAIRS).T.numpy()  # of a sum over tokens, each has the same
    np.testing.assert_allclose(slope, first, rtol=1e-5, atol=1e-8)


def test_kto_with_the_divergence_of_other_prompts_answers():
    import torch
    from trl import KTOTrainer

    spec = PreferenceSpec("kto", beta=0.3, wanted=1.2, unwanted=0.7)
    model = Spoken(POLICY[:, 0])
    one = trainer(
        calculate_KL=True, loss_type="kto", beta=0.3, desirable_weight=1.2, undesirable_weight=0.7,
        _compute_kl_logps=lambda model, batch: torch.tensor(POLICY[:, 1].sum(-1)),
    )  # fmt: skip
    own = mask()[:PAIRS]
    inputs = {
        "input_ids": torch.zeros(PAIRS, LONGEST + 1, dtype=torch.long), "completion_mask": own, "attention_mask": own,
        "label": torch.tensor(IS_WANTED), "ref_logps": torch.tensor(REFERENCE[:, 0].sum(-1)),
        "ref_KL_logps": torch.tensor(REFERENCE[:, 1].sum(-1)),
    }  # fmt: skip
    loss = KTOTrainer._compute_loss(one, model, inputs, False)
    (slopes,) = torch.autograd.grad(loss, model.logps)
    value, slope = of_ours(spec)
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    np.testing.assert_allclose(slope[:, 0], slopes[:, 0].numpy(), rtol=1e-5, atol=1e-8)
    assert not slope[:, 1].any()


def test_simpo_and_the_odds_ratio_of_orpo():
    import torch
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    means = torch.tensor(POLICY.sum(-1) / TOKENS, requires_grad=True)
    same = types.SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
    simpo = types.SimpleNamespace(
        loss_type="simpo", simpo_gamma=0.8, beta=2.0, label_smoothing=0.1, alpha=0.0, accelerator=same
    )  # fmt: skip
    loss = CPOTrainer.cpo_loss(simpo, means[:, 0], means[:, 1])[0].mean()
    value, slope = of_ours(PreferenceSpec("simpo", beta=2.0, margin=0.8, label_smoothing=0.1))
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    (slopes,) = torch.autograd.grad(loss, means)
    np.testing.assert_allclose(slope * TOKENS, slopes.numpy(), rtol=1e-5, atol=1e-8)

    orpo = types.SimpleNamespace(beta=0.3, accelerator=same)
    gain = ORPOTrainer.odds_ratio_loss(orpo, means[:, 0], means[:, 1])[0].mean()
    wanted = -means[:, 0].mean() - gain
    value, slope = of_ours(PreferenceSpec("orpo", beta=0.3))
    assert value == pytest.approx(float(wanted.detach()), rel=1e-5)
    (slopes,) = torch.autograd.grad(wanted, means)
    np.testing.assert_allclose(slope * TOKENS, slopes.numpy(), rtol=2e-5, atol=1e-7)
    assert math.isfinite(value)
