"""What is known of a student and its teacher from their tokenizers: how their tokens and positions correspond."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stillhouse import alignment, vocabulary
from stillhouse.catalogue import ALIGNERS, VOCABULARIES, settle
from stillhouse.data.pieces import Pieces
from stillhouse.data.tokenizer import load_tokenizer, same_vocabulary
from stillhouse.evaluation.agreement.rows import Compared
from stillhouse.methods.pair import ends_of
from stillhouse.mistakes import Mistake
from stillhouse.models import check_room, load_config

if TYPE_CHECKING:
    from stillhouse.paired.dataset import Align
    from stillhouse.recipe import AgreementOptions


@dataclass(frozen=True)
class Pair:
    """Two models' tokenizers.

    Attributes:
        student: the student's.
        teacher: the teacher's.
        aligner: name and settings of what says which positions correspond; None: both read the same ids.
        map: [V_t] the student token of every teacher token, -1 for none; None: the ids are shared.
        many: what of several teacher tokens counts that go to one.
        remarks: what there is to say of it.
    """

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase
    aligner: dict[str, Any] | None = None
    map: NDArray[np.int32] | None = None
    many: str = "sum"
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: AgreementOptions) -> Pair:
        """Read both tokenizers, and make, find or read the map between them.

        Raises:
            Mistake: no tokenizer, a map of others or one that reaches nothing, or a model without room for its tokens
                or for `max_length` of them.
        """
        names = (options.model, options.teacher)
        sides = [load_tokenizer(name, trust_remote_code=options.trust_remote_code) for name in names]
        student, teacher = sides
        for key, who, name, side in zip(("model", "teacher"), ("student", "teacher"), names, sides, strict=True):
            config = load_config(name, trust_remote_code=options.trust_remote_code)
            check_room(config, len(side), options.max_length, model=key, length="max_length", who=f"the {who}")
        difference = same_vocabulary(student, teacher)
        remarks = [] if difference is None else [f"the teacher has a tokenizer of its own ({difference})"]
        if difference is None and options.alone:
            if student.eos_token_id != teacher.eos_token_id:
                ends = f"{student.eos_token} for the student and {teacher.eos_token} for the teacher"
                remarks.append(f"a text ends with {ends}; responses end with the student's")
            pair = cls(student, teacher, remarks=tuple(remarks))
        else:
            aligner = options.alignment or {"name": "span", **settle(ALIGNERS["span"], {}, "alignment")}
            ids, many = None, "sum"
            if difference is not None or options.vocabulary is not None:
                usual = {"name": "overlap", **settle(VOCABULARIES["overlap"], {}, "vocabulary")}
                chosen = options.vocabulary or usual
                found = vocabulary.chosen(chosen, teacher, student)
                reach = found.coverage
                wide = f"{reach.teacher:.1%} of the teacher's tokens and {reach.student:.1%} of the student's"
                remarks.append(f"vocabulary: {chosen['name']} reaches {wide}")
                ids, many = found.ids, str(chosen.get("many", "sum"))
            pair = cls(student, teacher, aligner, ids, many, tuple(remarks))
        if options.top_k > pair.width:
            raise Mistake("top_k", f"is {options.top_k}, but {pair.width} tokens are compared", "write a smaller one")
        return pair

    @cached_property
    def compared(self) -> Compared | None:
        """The tokens that are compared; None: all.

        Raises:
            Mistake: there are none.
        """
        if self.map is None:
            return None
        try:
            return Compared.of(self.map, (len(self.student), len(self.teacher)), self.many)
        except ValueError:
            mend = "take another one, such as min_edit"
            raise Mistake("vocabulary", "sends no teacher token to one that the student predicts", mend) from None

    @property
    def width(self) -> int:
        """How many tokens are compared."""
        return len(self.student) if self.compared is None else self.compared.translation.vocabulary

    @property
    def align(self) -> Align:
        """The aligner."""
        assert self.aligner is not None
        return alignment.build(self.aligner["name"])

    @cached_property
    def texts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For every token of the student [V_s] and of the teacher [V_t] a number that is equal where their texts are.

        All that end a text or a turn are equal, other special tokens are unlike everything.
        """
        numbers: dict[bytes, int] = {}
        found = []
        for pieces, nothing in ((Pieces.of(self.student), -1), (Pieces.of(self.teacher), -2)):
            ids = [numbers.setdefault(content, len(numbers)) if content else nothing for content in pieces.content]
            for end in ends_of(pieces):
                ids[end] = -3
            found.append(torch.tensor(ids))
        return found[0], found[1]
