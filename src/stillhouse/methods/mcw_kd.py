"""MCW-KD: several costs of standing tokens of two models side by side, weighed, and what their transport costs.

Beside DSKD's cross-model attention, or a divergence by a map of tokens (`kd`), there are two transports over the
positions of an example, one by logits and one by hidden states, each by the weighted sum of three costs
(`mcw_costs`). (Vuong et al., AAAI 2026, doi:10.1609/aaai.v40i39.40619.) Letters: an example has M rows of the teacher
and N of the student, C [3, M, N] are its costs, w [3] their weights.

    primal       sum P sum_k w_k C_k, P the entropic plan of the weighted sum
    semi-dual    mean phi + sum_k w_k mean phi^c_k, phi a network that climbs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stillhouse.head import Head, Pairing, Predictions, Term
from stillhouse.methods import projectors as projecting
from stillhouse.methods.clock import Clock
from stillhouse.methods.cross_attention import cross_model_attention
from stillhouse.methods.dual_space import LABELS, CrossModelDualSpace, Objective, dual_space
from stillhouse.methods.mcw_costs import EditCosts, Example, hidden_costs, logit_costs
from stillhouse.methods.method import Terms
from stillhouse.transport import cost_weights, edit_costs, transport_cost

LOGITS, HIDDEN = 0, 1
COSTS = (("c_l2", "c_kl", "c_salience"), ("c_edit", "c_window", "c_cosine"))
START = 0.1  # the teacher's share of its logits at first


class MultiCostTransport(CrossModelDualSpace):
    """label_weight CE + kd_weight KD + logit_weight W_logits + hidden_weight W_hidden.

    KD is cross-model attention's; where the recipe has a vocabulary, it is D of the rows that this moves.

    Clean: a response's transport counts for each of its student's tokens; salience is learnt; what the teacher's logits
    are mixed with gets no gradient. parity: the mean over a micro-batch's examples, whatever their tokens, divided by
    the number of tokens again; salience stays as it was drawn; the mixture moves with every micro-batch.
    """

    follows_means = True
    label_weight = 1.0

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(name, settings)
        if self.settings["parity"]:
            self.settings["std_scope"] = "padded"
        self.cost_weights: Tensor
        self.cost_totals: Tensor
        self.forwards: Tensor
        self.register_buffer("cost_weights", self.first_weights())  # [2, 3]
        self.register_buffer("cost_totals", torch.zeros(2, 2, 3))  # mean costs so far, added up; of how many steps
        self.register_buffer("forwards", torch.zeros((), dtype=torch.long))

    def first_weights(self) -> Tensor:
        """Of the costs of logits and of hidden states, before the first update: [2, 3]."""
        return torch.tensor([[0.2, 0.5, 0.3], [0.3, 0.5, 0.2]])

    def make(self, student: Head, teacher: Head, seed: int) -> None:
        """The projectors of cross-model attention, where there is any; ot, D to d, and salience, d to 1."""
        d, D = student.weight.shape[1], teacher.weight.shape[1]
        of_transports, attention = {"ot": (D, d), "salience": (d, 1)}, {"t2s": (D, d), "s2t": (d, D)}
        attention |= {"query": (2 * d, 2 * D)}
        self._projected_by(of_transports if self.by_map else attention | of_transports, seed)
        if self.settings["parity"]:
            self.projectors["salience"].requires_grad_(False)

    def forward(self, student: Predictions, teacher: Predictions | None, clock: Clock) -> Terms:
        """Sum over N_s tokens; `teacher` must be given, with the rows of every example in its pairing."""
        assert teacher is not None
        now = self.at(clock)
        words = (self.by_tokens if self.by_map else self.spaces)(student, teacher, now)
        plain = replace(self.aligned(student, teacher.detach()), translation=None)
        values, sums = self.transports(student, plain, now, self._share(clock))
        loss = words.loss + now["logit_weight"] * values[LOGITS] + now["hidden_weight"] * values[HIDDEN]
        return Terms(loss, {**words.sums, **sums})

    @property
    def by_map(self) -> bool:
        """Whether the recipe has a vocabulary, whose rows are compared in the place of cross-model attention."""
        return self.tokenizers is not None and self.tokenizers.map is not None

    @property
    def needs_padding(self) -> bool:
        """Whether the teacher's hidden states of prompts and padding count: those of cross-model attention may."""
        return super().needs_padding and not self.by_map

    def by_tokens(self, student: Predictions, teacher: Predictions, now: Mapping[str, Any]) -> Terms:
        """label_weight CE + kd_weight D of the rows that correspond, by the recipe's vocabulary: a map's, or CDM's."""
        objective = replace(Objective.of(now), label_weight=self.label_weight)
        terms = [Term("ce", LABELS, objective.label_weight), Term("kd", objective.t2s, objective.kd_weight)]
        return self.summed(student, teacher, terms)

    def spaces(self, student: Predictions, teacher: Predictions, now: Mapping[str, Any]) -> Terms:
        """label_weight CE + kd_weight KD."""
        objective = replace(Objective.of(now), label_weight=self.label_weight)
        attended = cross_model_attention(student, teacher, self.projectors, now["std_scope"])
        return dual_space(student, teacher, *attended, objective, self.blocks, only_right=True)

    def transports(
        self, student: Predictions, teacher: Predictions, now: Mapping[str, Any], share: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both transports, [2], reduced as the settings say, and what to report of them as sums over tokens.

        Args:
            share: of the teacher in its mixture with the student, a scalar.
        """
        official = now["parity"]
        values, means, tokens = [], [], []
        with torch.autocast(student.hidden.device.type, enabled=False):
            for example in self._examples(student, teacher, int(now["top_k"]), share):
                of_kinds = [self.of_example(kind, example) for kind in (LOGITS, HIDDEN)]
                values.append(torch.stack([value for value, _ in of_kinds]))  # [2]
                means.append(torch.stack([mean for _, mean in of_kinds]))  # [2, 3]
                tokens.append(example.edits.shape[1])
        assert teacher.pairing is not None
        if not values:
            nothing = student.hidden.new_zeros((2, 3), dtype=torch.float32)
            return nothing[:, 0], self._reported(nothing[:, 0], nothing)
        stacked, by_cost = torch.stack(values), torch.stack(means)  # [B, 2], [B, 2, 3]
        if official:
            # The released code logs and collects the costs of a batch's last example.
            reduced, costs = stacked.sum(0) / len(teacher.pairing.student_counts), by_cost[-1] * len(student)
        else:
            weights = stacked.new_tensor(tokens)  # [B]
            reduced, costs = weights @ stacked, torch.einsum("b,bkc->kc", weights, by_cost)
        return reduced, self._reported(reduced.detach(), costs)

    def of_example(self, kind: int, example: Example) -> tuple[Tensor, Tensor]:
        """The transport of one kind, a scalar, and the mean of each cost, [3]."""
        costs = self._costs(kind, example)  # [3, M, N]
        weighted = torch.einsum("c,cmn->mn", self.cost_weights[kind].to(costs.dtype), costs)
        return transport_cost(weighted), costs.detach().mean((1, 2))

    def _costs(self, kind: int, example: Example) -> Tensor:
        return logit_costs(example) if kind == LOGITS else hidden_costs(example)

    def _examples(self, student: Predictions, teacher: Predictions, k: int, share: Tensor) -> Iterator[Example]:
        """Those with rows on both sides."""
        pairing = teacher.pairing
        assert pairing is not None and pairing.edits is not None, "the collator was not given `edits`"
        k = min(k, student.head.vocabulary, teacher.head.vocabulary)
        ours = student.top_k(k, self.blocks).values  # [N_s, k]
        theirs = teacher.top_k(k, self.blocks).values  # [N_t, k]
        theirs = _mixed(theirs, ours if self.settings["parity"] else ours.detach(), pairing, share)
        seen = projecting.projected(self.projectors, "ot", teacher.hidden)  # [N_t, d]
        own = student.hidden.to(seen.dtype)
        saliences = [projecting.projected(self.projectors, "salience", rows).squeeze(-1) for rows in (seen, own)]
        of_teacher = _by_example([theirs, saliences[0], seen], pairing.teacher_counts)
        of_student = _by_example([ours, saliences[1], own], pairing.student_counts)
        for t, s, edits in zip(of_teacher, of_student, pairing.edits, strict=True):
            if len(t[0]) and len(s[0]):
                costs = edit_costs(edits, len(t[0]), len(s[0]))
                yield Example((t[0], s[0]), (t[1], s[1]), costs, (t[2], s[2]))

    @property
    def edits(self) -> EditCosts:
        """Between raw tokens; the same object every time."""
        return self._edits

    @cached_property
    def _edits(self) -> EditCosts:
        assert self.tokenizers is not None, "MCW-KD needs both tokenizers"
        return EditCosts.of(self.tokenizers, official=self.settings["parity"])

    def _share(self, clock: Clock) -> Tensor:
        """The teacher's share of its logits, from 0.1 to 1: over the run, or so many micro-batches as it has steps."""
        if not self.settings["parity"]:
            return self.cost_weights.new_tensor(START + (1.0 - START) * clock.progress)
        if self.training:
            self.forwards += 1
        return START + (1.0 - START) * (self.forwards / max(1, clock.steps)).clamp(max=1.0)

    def _reported(self, values: Tensor, costs: Tensor) -> dict[str, Tensor]:
        names = {name: costs[kind, at] for kind, row in enumerate(COSTS) for at, name in enumerate(row)}
        return {"ot_logits": values[LOGITS], "ot_hidden": values[HIDDEN], **names}

    @torch.no_grad()
    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> None:
        """Collect the mean costs, and weigh them anew every `update_interval` steps."""
        found = torch.stack([torch.stack([means[name] for name in row]) for row in COSTS])  # [2, 3]
        self.cost_totals[0] += found.to(self.cost_totals)
        self.cost_totals[1] += 1.0
        if (clock.step + 1) % int(self.settings["update_interval"]) == 0:
            self.cost_weights.copy_(cost_weights(self.cost_totals[0] / self.cost_totals[1], self.settings["sigma"]))
            self.cost_totals.zero_()

    def gauges(self, clock: Clock) -> dict[str, float | Tensor]:
        """The schedules, and the weight of every cost."""
        names = [f"weight_{name.removeprefix('c_')}" for row in COSTS for name in row]
        return {**super().gauges(clock), **dict(zip(names, self.cost_weights.flatten().unbind(), strict=True))}


def _mixed(theirs: Tensor, ours: Tensor, pairing: Pairing, share: Tensor) -> Tensor:
    """The teacher's rows [N_t, k] mixed with the student's rows that they are aligned with; others stay."""
    group = torch.repeat_interleave(pairing.teacher_bounds.diff(), output_size=len(pairing.teacher_index))
    partner = pairing.student_index[pairing.student_bounds[group]]  # [K], the first of its group
    mixed = torch.lerp(ours[partner], theirs[pairing.teacher_index], share.to(theirs.dtype))
    return theirs.index_copy(0, pairing.teacher_index, mixed)


def _by_example(parts: Sequence[Tensor], counts: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(part.split(list(counts)) for part in parts), strict=True)
