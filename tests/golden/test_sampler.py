"""DistiLLM's and GKD's samplers: every decision of TAID's port, and the threshold after every dev loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stillhouse.catalogue import METHODS
from stillhouse.catalogue.sources import rollout_of
from stillhouse.rollout.deciding import Deciding, Decision

CAPACITY, BATCH, STEPS = 12, 2, 100


@pytest.fixture
def official(golden: Path):
    path = golden / "same_tokenizer" / "sampler.npz"
    if not path.exists():
        pytest.skip(f"no {path}")
    return np.load(path)


@pytest.mark.parametrize(("kind", "given"), [
    ("adaptive", {"source": "adaptive", "threshold": 0.6, "capacity": CAPACITY}),
    ("mixed", {"source": "mixed", "share": 0.5, "replay": True, "capacity": CAPACITY}),
])  # fmt: skip
def test_every_decision(official, kind, given):
    drawn = np.random.RandomState(0)
    uniforms = official[f"{kind}.r"]
    assert uniforms[:3] == pytest.approx(drawn.uniform(size=3)), "the numbers that the official code drew"
    deciding = Deciding(rollout_of(METHODS["reverse_kl"], given), lambda step: float(uniforms[step]))
    codes = {Decision(): 0, Decision(write=True): 1, Decision(replay=True): 2, Decision(True, True): 3}
    held, ours, lengths = 0, [], []
    for step in range(STEPS):
        decided = deciding.decide(step, step / STEPS, full=held == CAPACITY)
        held = min(CAPACITY, held + BATCH * decided.write)
        ours.append(codes[decided])
        lengths.append(held)
    assert ours == official[f"{kind}.decision"].tolist()
    assert lengths == official[f"{kind}.buffer_len"].tolist()


def test_the_threshold_after_every_dev_loss(official):
    deciding = Deciding(rollout_of(METHODS["reverse_kl"], {"source": "adaptive", "loss_eps": 0.0}), lambda _: 0.0)
    after = []
    for loss in official["phi.val_losses"].tolist():
        deciding.evaluated(loss)
        after.append(deciding.threshold)
    assert after == pytest.approx(official["phi.after"].tolist())
