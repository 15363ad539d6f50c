"""What a student answers to questions of two turns, its own first answer in the conversation of the second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.data.encode import Limits, encode_prompt
from stillhouse.data.questions import TURNS, Question
from stillhouse.data.templates import Template
from stillhouse.data.tokenizer import leading_ids
from stillhouse.rollout import Sampling, end_of_turn, respond

# Of MT-Bench's eight categories; what is right or wrong is answered greedily.
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
ELSEWHERE = 0.7  # in categories that MT-Bench has not
_NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class Answers:
    """A student's answers to both turns of a question.

    Attributes:
        finished: the model ended it, before its longest.
        clipped: there was room for less than `max_new_tokens`.
        cut: the beginning of the conversation was lost, since the model has no positions for all of it.
    """

    question: str
    category: str
    texts: tuple[str, ...]
    finished: tuple[bool, ...]
    clipped: tuple[bool, ...]
    cut: tuple[bool, ...]

    def as_line(self) -> dict[str, Any]:
        """As the file of answers has it."""
        return asdict(self)

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> Answers:
        """The inverse of `as_line`, after a trip through JSON."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in line.items()
        }
        return cls(**fields)


@dataclass(frozen=True)
class Asking:
    """How questions are put to a student.

    Attributes:
        temperature: of all categories; None: as MT-Bench has it for each.
        room: tokens of prompt and answer.
    """

    template: Template
    max_new_tokens: int
    temperature: float | None
    top_p: float
    room: int
    bos: bool | None
    batch_size: int

    def sampling(self, category: str) -> Sampling:
        """How answers of a category are drawn."""
        own = TEMPERATURES.get(category, ELSEWHERE) if self.temperature is None else self.temperature
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=own, top_p=self.top_p)

    def encoded(self, said: Sequence[str], origin: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], bool]:
        """A conversation's token ids, and whether its beginning was cut to leave room for an answer.

        The end is kept, unlike in training: it is what is asked.
        """
        segment = self.template.continued(said, origin)
        ids = encode_prompt(segment, tokenizer, Limits(_NO_LIMIT, _NO_LIMIT, bos=self.bos))
        most = max(self.room - self.max_new_tokens, self.room // 2)
        if len(ids) <= most:
            return ids, False
        lead = leading_ids(tokenizer)
        lead = lead if ids[: len(lead)] == lead else []
        return [*lead, *ids[len(ids) - most + len(lead) :]], True


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], asking: Asking, seed: int
) -> list[Answers]:
    """The student's answers to all questions, drawn with `seed`; each depends on its own place in the file only.

    Raises:
        Mistake: the chat template refuses a conversation.
    """
    said = [[question.turns[0]] for question in questions]
    notes: list[list[tuple[str, bool, bool, bool]]] = [[] for _ in questions]
    stop = end_of_turn(asking.template, tokenizer)
    for turn in range(TURNS):
        for sampling in sorted({asking.sampling(question.category) for question in questions}, key=str):
            places = [place for place, asked in enumerate(questions) if asking.sampling(asked.category) == sampling]
            prompts = [asking.encoded(said[place], questions[place].origin, tokenizer) for place in places]
            responses = respond(
                model,
                tokenizer,
                [ids for ids, _ in prompts],
                sampling,
                seed=[(seed, place, turn) for place in places],
                batch_size=asking.batch_size,
                description=f"seed {seed}, turn {turn + 1}, temperature {sampling.temperature:g}",
                max_length=asking.room,
                stop=stop,
            )
            for place, (_, cut), response in zip(places, prompts, responses, strict=True):
                notes[place].append((response.text, response.finished, response.clipped, cut))
        if turn + 1 < TURNS:
            for place, question in enumerate(questions):
                said[place] += [notes[place][-1][0], question.turns[turn + 1]]
    return [
        Answers(question.id, question.category, *zip(*noted, strict=True))
        for question, noted in zip(questions, notes, strict=True)
    ]
