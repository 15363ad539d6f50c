"""Who writes the responses that a student learns from: every source of the recipe's `rollout`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.catalogue.entry import Entry, Parameter, find, settle
from stillhouse.mistakes import Mistake

_DRAWN: Mapping[str, Parameter] = {
    "temperature": Parameter(1.0, "of sampling; 0 takes the likeliest token", 0.0, fixed=True),
    "top_p": Parameter(1.0, "sample from the smallest set of tokens with this mass", 0.0, 1.0, True, fixed=True),
    "top_k": Parameter(0, "sample from this many likeliest tokens; 0: from all", 0.0, fixed=True, whole=True),
    "max_new_tokens": Parameter(
        None, "tokens of a response; by default all that data.max_length leaves", 1.0, fixed=True, whole=True
    ),
    "batch_size": Parameter(32, "prompts answered at a time", 1.0, fixed=True, whole=True),
    "engine": Parameter(
        "batches", "transformers' generate in batches, or its continuous batching", fixed=True,
        choices=("batches", "continuous"),
    ),
    "server": Parameter("none", "the address of a vLLM server that writes instead", fixed=True),
}  # fmt: skip
_OF_STUDENT: Mapping[str, Parameter] = {
    **_DRAWN,
    "show_every": Parameter(
        100, "optimizer steps between two looks at what is written (samples.jsonl); 0: never", 0.0, fixed=True,
        whole=True,
    ),
}  # fmt: skip
_CAPACITY = Parameter(1000, "responses that the replay buffer holds, of all processes together", 1.0, fixed=True,
                      whole=True)  # fmt: skip

_DATASET = Entry("dataset", "-", "the data set's own responses", aliases=("data", "off_policy"))
_TEACHER = Entry(
    "teacher",
    "Kim and Rush, 2016, arXiv:1606.07947",
    "the teacher answers every training prompt once, before the first step; kept in the run's folder",
    _DRAWN,
    aliases=("seqkd",),
)
_STUDENT = Entry(
    "student",
    "Agarwal et al., GKD, arXiv:2306.13649",
    "the student answers the prompts of every step as it is then (on-policy)",
    {
        **_OF_STUDENT,
        "teacher_mix": Parameter(
            0.0, "every token is drawn from (1 - teacher_mix) student + teacher_mix teacher", 0.0, 1.0, fixed=True
        ),
        "reuse": Parameter(
            1, "optimizer steps on what was written; the prompts of the steps between are passed over; with window, "
            "epochs over it, each in an order of its own", 1.0, fixed=True, whole=True,
        ),
        "window": Parameter(
            0, "responses written at once, a multiple of the optimizer step's examples; 0: as many as a step takes",
            0.0, fixed=True, whole=True,
        ),
    },
    aliases=("on_policy",),
)  # fmt: skip
_MIXED = Entry(
    "mixed",
    "Agarwal et al., GKD, arXiv:2306.13649",
    "a share of the optimizer steps is on-policy, drawn anew at each; the others are on the data set",
    {
        **_OF_STUDENT,
        "share": Parameter(0.5, "how likely a step is on-policy", 0.0, 1.0, aliases=("lmbda", "mixed_alpha")),
        "replay": Parameter(False, "such a step learns from a sample of the replay buffer, which it adds to"),
        "capacity": _CAPACITY,
    },
)
_ADAPTIVE = Entry(
    "adaptive",
    "Ko et al., DistiLLM, arXiv:2402.03898",
    "more and more on-policy as the dev loss rises, and ever less of it written anew",
    {
        **_OF_STUDENT,
        "threshold": Parameter(0.0, "how likely a step is on-policy at first", 0.0, 1.0, fixed=True,
                               aliases=("init_threshold",)),
        "loss_eps": Parameter(0.1, "the dev loss counts as risen from so much above the last rise", 0.0, fixed=True),
        "replay_ratio": Parameter(
            "decreasing",
            "the share of on-policy steps that write anew: 1 - progress, progress, or a half",
            choices=("decreasing", "increasing", "constant"),
        ),
        "capacity": _CAPACITY,
    },
)  # fmt: skip
_PAIRED = Entry(
    "paired",
    "Ko et al., DistiLLM-2, arXiv:2503.07067",
    "every prompt twice: with the data set's response, and with one that the student writes, now or before",
    {
        **_OF_STUDENT,
        "written": Parameter(
            "none", "rows that the student has answered before (`stillhouse generate`); rejected: the training rows' "
            "own; none: it writes at every step",
            fixed=True,
        ),
    },
    aliases=("contrastive",),
)  # fmt: skip
SOURCES: dict[str, Entry] = {entry.name: entry for entry in (_DATASET, _TEACHER, _STUDENT, _MIXED, _ADAPTIVE, _PAIRED)}

# What `written` says where the training rows hold both responses.
REJECTED = "rejected"

# Sources in which the student has no part.
BY_OTHERS = ("dataset", "teacher")


def rollout_of(
    method: Entry, given: Mapping[str, Any] | None, chosen: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The section `rollout` as the recipe writes it, checked, over the defaults of its source and of the method.

    Args:
        method: that learns from it.
        given: the section; None where there is none.
        chosen: the method's own settings, settled.

    Raises:
        Mistake: no such source or setting, or the method cannot learn from it.
    """
    alone = any((chosen or {}).get(key) in values for key, values in method.alone.items())
    own = dict((None if alone else method.rollout) or {"source": "dataset"})
    sources = BY_OTHERS if alone else method.sources
    usual = own.pop("source")
    settings = {key: value for key, value in (given or {}).items() if key != "source"}
    entry = find("source", SOURCES, (given or {}).get("source", usual), "rollout.source")
    if sources and entry.name not in sources:
        told = "".join(f" with {key} {(chosen or {})[key]}" for key in method.alone) if alone else ""
        mend = f"it takes {', '.join(sources)}"
        raise Mistake("rollout.source", f"{method.name}{told} cannot learn from '{entry.name}'", mend)
    if not method.needs_teacher and entry.name not in BY_OTHERS:
        wrong = f"would teach {method.name} nothing but what the student says already"
        raise Mistake("rollout.source", wrong, f"write {' or '.join(BY_OTHERS)}")
    defaults = {key: value for key, value in own.items() if key in entry.parameters}
    settled = settle(entry, settings, "rollout", schedules=True, defaults=defaults)
    if "capacity" in settings and not settled.get("replay", True):
        raise Mistake("rollout.capacity", "is of a replay buffer, and there is none", "add rollout.replay: true")
    return {"source": entry.name, **settled}
