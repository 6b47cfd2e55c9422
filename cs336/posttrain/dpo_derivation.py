"""Where DPO's loss comes from, step by step, and the same in numbers on a small example."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cs336.posttrain.dpo import dpo_loss

PAGE = """**1. What is to be maximised.** For a prompt x, the policy should earn reward and stay near the reference:
`J(pi) = E_{y ~ pi}[r(x, y)] - beta KL(pi(.|x) || ref(.|x))`.

**2. Its maximum in closed form.** Written as one expectation, `J = -beta E_{y ~ pi}[log(pi(y|x) / (ref(y|x)
exp(r(x, y) / beta)))]`. With `Z(x) = sum_y ref(y|x) exp(r(x, y) / beta)` the denominator is `Z(x)` times a
distribution, `pi*(y|x) = ref(y|x) exp(r(x, y) / beta) / Z(x)`, so `J(pi) = beta log Z(x) - beta KL(pi || pi*)`. A
divergence is never negative, and 0 only for equal distributions: `pi*` is the maximum, of value `beta log Z(x)`.

**3. Turned around.** Taking logarithms, `r(x, y) = beta log(pi*(y|x) / ref(y|x)) + beta log Z(x)`: a policy is the best
one for some reward, and that reward can be read off it but for a number that depends on the prompt alone.

**4. Into the loss of a reward model.** Bradley and Terry: `P(y_w beats y_l) = sigma(r(x, y_w) - r(x, y_l))`, and a
reward model is trained on `-log sigma(r(x, y_w) - r(x, y_l))`. Put in step 3 for the policy that is trained: both
rewards have the same `beta log Z(x)`, which cancels, and what is left needs no sum over all texts:
`-log sigma(beta [(log pi(y_w|x) - log pi(y_l|x)) - (log ref(y_w|x) - log ref(y_l|x))])`.

**5. Its gradient.** `-beta sigma(-m) [grad log pi(y_w|x) - grad log pi(y_l|x)]` with m the margin of the rewards: pairs
that are ordered wrongly count most. Only the difference is learnt, so the likelihood of both texts may fall.
"""


class DerivationCheck(NamedTuple):
    """How far the derivation is from numbers computed without it; all should be rounding.

    Attributes:
        value: largest |J(pi*) - beta log Z|.
        beaten_by: how much more than pi* the best of many random policies earns; negative when none does.
        rewards: largest error of reward differences read off pi*.
        loss: largest |DPO's loss of pi* - the reward model's loss|.
    """

    value: float
    beaten_by: float
    rewards: float
    loss: float


def check_derivation(
    *, beta: float = 0.1, num_texts: int = 8, num_policies: int = 1_000, seed: int = 0
) -> DerivationCheck:
    """Steps 2 to 4 for a prompt with a few possible texts, random rewards and a random reference."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rewards, reference = drawn(num_texts), drawn(num_texts).log_softmax(0)
    log_z = (reference + rewards / beta).logsumexp(0)
    best = reference + rewards / beta - log_z

    def objective(log_probs: torch.Tensor) -> torch.Tensor:
        probabilities = log_probs.exp()
        return (probabilities * rewards).sum(-1) - beta * (probabilities * (log_probs - reference)).sum(-1)

    policies = drawn(num_policies, num_texts).log_softmax(-1)
    near = (best + 0.01 * drawn(num_policies, num_texts)).log_softmax(-1)
    read_off = beta * (best - reference)
    first, second = torch.triu_indices(num_texts, num_texts, offset=1)
    implied = dpo_loss(
        torch.stack([best[first], best[second]], 1), torch.stack([reference[first], reference[second]], 1), beta
    )
    expected = -torch.nn.functional.logsigmoid(rewards[first] - rewards[second])
    differences = (read_off[first] - read_off[second]) - (rewards[first] - rewards[second])
    return DerivationCheck(
        value=float((objective(best) - beta * log_z).abs()),
        beaten_by=float(torch.cat([objective(policies), objective(near)]).max() - objective(best)),
        rewards=float(differences.abs().max()),
        loss=float((implied.losses - expected).abs().max()),
    )
