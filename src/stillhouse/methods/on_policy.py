"""Word-level methods whose own part is who writes the responses (the recipe's `rollout`): GKD, ImitKD, DistiLLM."""

from __future__ import annotations

from stillhouse.methods.word_level import WordLevel


class GeneralizedKD(WordLevel):
    """The generalised Jensen-Shannon divergence, partly on the student's own text. (GKD, arXiv:2306.13649)"""

    divergence = "jsd"


class ImitationKD(WordLevel):
    """Forward KL on text that the student wrote, kept and drawn again. (Lin et al., ImitKD, arXiv:2009.07253)"""

    divergence = "forward_kl"


class AdaptiveOffPolicy(WordLevel):
    """The skew KL of the setting `loss`, ever more on the student's own text. (DistiLLM, arXiv:2402.03898)"""
