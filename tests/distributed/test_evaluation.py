"""`evaluate` by two processes writes what one writes, and each answers its share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse import store
from stillhouse.evaluation import evaluate
from stillhouse.recipe import EvaluateOptions
from tests.distributed.ranks import on_ranks
from tests.rollout.small import save_model

ROWS = [{"instruction": "say " + "x" * number, "output": "a b"} for number in (3, 1, 4, 1, 5, 9, 2)]


def options(folder: Path, out: str, **others: object) -> EvaluateOptions:
    settings = {"template": "short", "max_new_tokens": 9, "seeds": [10, 20], "out": str(folder / out), "batch_size": 2}
    return EvaluateOptions(model=str(folder / "model"), data=[str(folder / "rows.jsonl")], **{**settings, **others})  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    alone = evaluate(options(tmp_path, "alone"))

    def work() -> tuple[dict, int]:
        from stillhouse.evaluation import predictions, run

        counts = []
        real = predictions.respond

        def counted(*given: object, **named: object) -> object:
            counts.append(len(given[2]))  # pyright: ignore[reportArgumentType]
            return real(*given, **named)  # pyright: ignore[reportArgumentType]

        predictions.respond = counted
        report = run.evaluate(options(tmp_path, "together"))
        again = run.evaluate(options(tmp_path, "together"))
        assert again == report
        return report, sum(counts)

    (first, of_first), (second, of_second) = on_ranks(work)
    assert first == second == alone
    assert (of_first, of_second) == (2 * 4, 2 * 3), "each is to answer its share of both seeds, once"
    for seed in (10, 20):
        one, two = (
            (tmp_path / out / "rows" / f"seed{seed}" / "predictions.jsonl").read_bytes()
            for out in ("alone", "together")
        )
        assert one == two
    assert store.read_json(tmp_path / "together" / "measures.json") == store.read_json(
        tmp_path / "alone" / "measures.json"
    )
