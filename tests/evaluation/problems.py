"""A handful of problems of our own, in HumanEval's and in MBPP's fields, with their solutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HUMANEVAL: list[dict[str, Any]] = [
    {
        "task_id": "Own/0",
        "prompt": 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """ The sum.\n    """\n',
        "entry_point": "total",
        "canonical_solution": "    return sum(numbers)\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    },
    {
        "task_id": "Own/1",
        "prompt": "def shift(text: str):\n    return ''.join(chr(ord(c) + 1) for c in text)\n\n\n"
        'def unshift(text: str):\n    """ Undoes shift. """\n',
        "entry_point": "unshift",
        "canonical_solution": "    return ''.join(chr(ord(c) - 1) for c in text)\n",
        "test": "def check(candidate):\n    from random import choice\n    for _ in range(5):\n"
        "        text = ''.join(choice('abc') for _ in range(9))\n"
        "        assert candidate(shift(text)) == text\n",
    },
    {
        "task_id": "Own/2",
        "prompt": 'def halves(number):\n    """ Quotient, remainder, and half. """\n',
        "entry_point": "halves",
        "canonical_solution": "    return number // 2, number % 2, number / 2\n",
        "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(5) == (2, 1, 2.5)\n"
        "    assert isinstance(candidate(10 ** 40)[0], int)\n    assert tuple(halves(4)) == (2, 0, 2.0)\n",
    },
]
MBPP: list[dict[str, Any]] = [
    {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"import math\ndef add_it(n):\n    return math.floor(n) + {number}\n",
        "test_list": [f"assert add_it(1) == {number + 1}", f"assert math.isclose(add_it(2), {number + 2})"],
        "test_setup_code": "import math",
        "challenge_test_list": [],
    }
    for number in range(1, 7)
]  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
