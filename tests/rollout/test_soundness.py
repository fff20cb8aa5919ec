"""The check of fixed tokens: passes what rounding explains, and names what it does not."""

from __future__ import annotations

import pytest
import torch
from rollout_support import tiny_network

from hillclimb.rollout.soundness import fixed_prompt, require_sound, unshared


@torch.no_grad()
def logprobs(model, prompt):
    ids = torch.tensor([prompt])
    found = model(ids).logits[0, :-1].log_softmax(-1)
    return found.gather(1, ids[0, 1:, None])[:, 0]


def test_the_models_own_log_probabilities_pass_and_those_of_stale_weights_do_not():
    model, prompt = tiny_network(), fixed_prompt(40)
    own = logprobs(model, prompt)
    assert require_sound(model, prompt, own.tolist(), "float32", 1) < 1e-6
    assert require_sound(model, prompt, (own + 0.02).tolist(), "bfloat16", 1) > 0.01
    with pytest.raises(RuntimeError, match=r"version 3: .* 47 fixed tokens are 0.02 nats"):
        require_sound(model, prompt, (own + 0.02).tolist(), "float32", 3)
    stale = logprobs(tiny_network(seed=4), prompt)
    with pytest.raises(RuntimeError, match=r"more than 0\.25 in bfloat16"):
        require_sound(model, prompt, stale.tolist(), "bfloat16", 1)


def test_log_probabilities_that_are_no_numbers_do_not_pass():
    model, prompt = tiny_network(), fixed_prompt(40)
    with pytest.raises(RuntimeError, match="are nan nats"):
        require_sound(model, prompt, [float("nan")] * 47, "float32", 0)


def test_a_tensor_with_two_names_is_kept_once():
    weight = torch.ones(3, 4)
    weights = {"embed": weight, "norm": torch.ones(4), "head": weight, "view": weight[:2]}
    assert list(unshared(weights)) == ["embed", "norm", "view"]
    assert unshared({"a": torch.zeros(0), "b": torch.zeros(0)}).keys() == {"a", "b"}
