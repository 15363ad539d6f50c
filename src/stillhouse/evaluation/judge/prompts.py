"""What a judge is asked: single answers graded from 1 to 10, after MT-Bench's scheme, in words of our own."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.data.questions import Question

Chat = list[dict[str, str]]

# Categories whose answers are right or wrong; the judge sees the reference of these, where there is one.
REFERENCED = ("math", "reasoning", "coding")

_TASK = (
    "You grade what an AI assistant wrote to a user. Judge how helpful the answer is, whether it is to the point and "
    "correct, how deep it goes, how well it is written and how much detail it gives, for what was asked. Be strict and "
    "impartial; the length of an answer is no merit. First explain your judgement in a few sentences. Then, on a line "
    "of its own at the very end, give a rating from 1 (worst) to 10 (best) in double square brackets, such as: "
    "Rating: [[5]]"
)
_REFERENCE = (
    " You are given a correct answer of reference. Compare the assistant's answer with it, name the mistakes, and "
    "weigh correctness most."
)
_SECOND = " The conversation has two turns. Grade the assistant's answer to the second question alone."
_REMINDER = (
    "Your reply holds no rating that could be read. Reply with nothing but your rating of that answer, a number from "
    "1 to 10 in double square brackets, such as: Rating: [[5]]"
)


def judging(question: Question, answers: Sequence[str], turn: int) -> Chat:
    """The messages that ask for a grade of the answer to `turn` (0 or 1), the turns before it in sight."""
    referenced = question.category in REFERENCED and any(question.references[: turn + 1])
    system = _TASK + (_SECOND if turn else "") + (_REFERENCE if referenced else "")
    parts = []
    for place in range(turn + 1):
        number = f" {place + 1}" if turn else ""
        parts.append(_part(f"Question{number}", question.turns[place]))
        if referenced and question.references[place]:
            parts.append(_part(f"Answer of reference{number}", str(question.references[place])))
        parts.append(_part(f"Assistant's answer{number}", answers[place]))
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(parts)}]


def reminding(messages: Chat, replies: Sequence[str]) -> Chat:
    """`messages` again, after `replies` that held no rating: the last of them, and a word on the form."""
    if not replies:
        return messages
    return [*messages, {"role": "assistant", "content": replies[-1]}, {"role": "user", "content": _REMINDER}]


def _part(title: str, text: str) -> str:
    return f"<<< {title} >>>\n{text}\n<<< End of {title[0].lower()}{title[1:]} >>>"
