"""Python programs that nobody trusts: run where they can reach nothing, and judged by who never met them.

`choose` finds a sandbox that works here, by trying; `run` runs a program in it; `judge` runs a candidate against tests.
"""

from stillhouse.sandbox.boxes import Ended, Kind, Unavailable, run
from stillhouse.sandbox.choosing import CHOICES, choose, describe, why_not
from stillhouse.sandbox.limits import Limits
from stillhouse.sandbox.scoring import VERDICTS, Trial, Verdict, count, judge

__all__ = [
    "CHOICES",
    "VERDICTS",
    "Ended",
    "Kind",
    "Limits",
    "Trial",
    "Unavailable",
    "Verdict",
    "choose",
    "count",
    "describe",
    "judge",
    "run",
    "why_not",
]
