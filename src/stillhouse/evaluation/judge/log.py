"""Everything that a judge replied, in a log that grows by a line for each reply, so that nothing is asked twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.evaluation.judge.client import Reply, Server
from stillhouse.evaluation.judge.prompts import Chat, reminding
from stillhouse.evaluation.judge.ratings import rating
from stillhouse.mistakes import Mistake
from stillhouse.store.digests import of_bytes
from stillhouse.store.records import dumps


@dataclass(frozen=True)
class Judgement:
    """What a judge replied to one request for a grade: once, or more often, where no rating could be read.

    Attributes:
        replies: in their order; the rating is in the last.
    """

    replies: tuple[Reply, ...] = ()

    @property
    def rating(self) -> float | None:
        """From 1 to 10; None where no reply has one."""
        return rating(self.replies[-1].text) if self.replies else None


@dataclass
class Log:
    """The replies of a file, by what was asked.

    A reply belongs to the hash of its server's address, the model asked for, and the very messages: another answer of
    the student, or another judge, is another question.
    """

    path: Path
    judgements: dict[str, Judgement] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, path: Path) -> Log:
        """The log at `path`; an empty one where there is none.

        Raises:
            Mistake: a line is no reply.
        """
        log = cls(path)
        try:
            lines = store.read_lines(path)
        except store.Absent:
            return log
        for number, text in enumerate(lines, start=1):
            try:
                line = json.loads(text)
                tokens = None if line["tokens"] is None else (int(line["tokens"][0]), int(line["tokens"][1]))
                log._add(str(line["asked"]), Reply(str(line["reply"]), str(line["model"]), tokens))
            except (ValueError, LookupError, TypeError):
                raise Mistake(f"{path}:{number}", "is not a judge's reply", "remove the line") from None
        return log

    def judge(self, server: Server, messages: Chat, attempts: int, notes: Mapping[str, Any]) -> Judgement:
        """The judgement that `messages` ask for, from the log as far as it is there; `notes` go into every new line.

        Raises:
            Mistake: the server refuses, or does not answer.
        """
        asked = key_of(server, messages)
        judgement = self.judgements.get(asked, Judgement())
        while judgement.rating is None and len(judgement.replies) < attempts:
            reply = server.ask(reminding(messages, [reply.text for reply in judgement.replies]))
            line = {"asked": asked, **notes, "reply": reply.text, "rating": rating(reply.text), "model": reply.model,
                    "tokens": reply.tokens}  # fmt: skip
            with self.lock:
                store.append_line(self.path, dumps(line).decode())
                judgement = self._add(asked, reply)
        return judgement

    def _add(self, asked: str, reply: Reply) -> Judgement:
        before = self.judgements.get(asked, Judgement())
        self.judgements[asked] = Judgement((*before.replies, reply))
        return self.judgements[asked]


def key_of(server: Server, messages: Chat) -> str:
    """The hash by which the log knows a request for a grade."""
    return of_bytes(dumps([server.address, server.model, server.max_tokens, messages])).xxh3
