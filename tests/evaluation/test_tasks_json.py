"""What the harness reports, as JSON can hold it."""

import torch

from stillhouse.evaluation.tasks import plain


def test_what_json_cannot_hold_is_null():
    told = {1: float("nan"), "b": (float("inf"), "N/A", torch.tensor(2.5), True)}
    assert plain(told) == {"1": None, "b": [None, None, 2.5, True]}
