"""MiniLLM: reverse KL of whole responses, by the policy gradient on what the student wrote.

(Gu et al., 2024, arXiv:2306.08543)
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.divergence import build as build_divergence
from stillhouse.divergence.policy import ClippedPolicyGradient
from stillhouse.head import Predictions, Sampled, Term
from stillhouse.head.likelihoods import log_likelihoods
from stillhouse.methods.clock import Clock
from stillhouse.methods.method import Method, Terms
from stillhouse.methods.responses import Responses


class PolicyGradient(Method):
    """The clipped policy gradient of the long-term reward, and the reverse KL of every next token at full vocabulary.

    A token's reward is how much likelier the teacher finds it than the student did. With `single_step` its own reward
    is learnt through the reverse KL, so its worth is what follows it; without, its own is part of it.
    """

    appraises = True

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N tokens; `teacher` and what was noted of the student's tokens must be given."""
        now, noted = self.at(clock), self.noted(student)
        temperature = now["temperature"]
        policy = ClippedPolicyGradient(
            temperature, now["cliprange"], noted.advantage, noted.log_probability, noted.importance
        )
        terms = [Term("policy", policy)]
        if now["single_step"]:
            terms.append(Term("kd", build_divergence("reverse_kl", temperature=temperature)))
        return self.row_by_row(student, teacher, terms)

    def on_text(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> tuple[float, Tensor]:
        """lm_coef, and (1 - lm_kd) CE + lm_kd KL(p||q) at temperature 1."""
        now = self.at(clock)
        both = [("cross_entropy", 1.0 - now["lm_kd"]), ("forward_kl", now["lm_kd"])]
        terms = [Term(name, build_divergence(name), share) for name, share in both if share > 0.0]
        return now["lm_coef"], self.row_by_row(student, teacher, terms).loss

    def appraise(self, teacher: Predictions, sampled: Sampled) -> Tensor:
        """The discounted rewards from a token on, or from the next one, a token: [N], not whitened."""
        now = self.settings  # those that are read here are fixed
        with torch.no_grad():
            found = log_likelihoods(teacher, 1.0 if now["parity"] else now["temperature"], blocks=self.blocks).labels
        rewards = clipped_rewards(found, sampled.log_probability, now["reward_scaling"], now["cliprange_reward"])
        from_next = now["single_step"] and not now["parity"]
        return returns(rewards, teacher.sequence, now["gamma"], from_next=from_next, length_norm=now["length_norm"])


def clipped_rewards(teacher: Tensor, student: Tensor, scaling: float, bound: float) -> Tensor:
    """(log p - log q) / scaling, cut to +-bound, of log-probabilities [N]: [N]; 0 where both are -inf."""
    neither = torch.isneginf(teacher) & torch.isneginf(student)
    return torch.where(neither, 0.0, (teacher - student) / scaling).clamp(-bound, bound)


def returns(rewards: Tensor, sequence: Tensor, gamma: float, *, from_next: bool, length_norm: bool) -> Tensor:
    """sum over j from k of gamma^(j - k) r_j within each token's response, divided by how many they are: [N].

    Args:
        rewards: [N]
        sequence: [N], which response a token is of; those of each in order.
        gamma: discount.
        from_next: the return of the token after this one; nothing follows the last, so 0.
        length_norm: whether to divide.
    """
    responses = Responses.of(sequence)
    table = responses.table(rewards)  # [S, L]
    steps = torch.arange(table.shape[1], device=table.device)
    ahead = steps[:, None] - steps  # [L, L] j - k
    discounts = torch.where(ahead >= 0, gamma ** ahead.clamp_min(0).to(table.dtype), 0.0)
    found = table @ discounts  # [S, L]
    if length_norm:
        found = found / (responses.lengths[:, None] - steps).clamp_min(1)
    if from_next:
        found = torch.cat([found[:, 1:], found[:, :1] * 0.0], dim=1)
    return found[responses.of_row, responses.place]
