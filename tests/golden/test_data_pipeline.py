"""The DSKD line's data pipeline to the token: its collated batches, and the batches of its training loops."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from stillhouse.data.collate import Collator
from stillhouse.data.encode import Limits, encode_all, encode_prompt
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer, pad_id

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("STILLHOUSE_SHARED", REPOSITORY.parent / "shared"))
GOLDEN = Path(os.environ.get("STILLHOUSE_GOLDEN", SHARED / "golden"))
CASES = sorted((GOLDEN / "cross_tokenizer").glob("data_pipeline_*.npz"))
CURVES = GOLDEN / "loops" / "curves.json"
RUNS: dict[str, dict[str, Any]] = json.loads(CURVES.read_text()) if CURVES.exists() else {}

DIGESTS = "batch_digests_sha256_int64_over_60_microbatches"

FOLDERS = {
    "gpt2": "gpt2-base",
    "qwen": "Qwen1.5-1.8B",
    "llama": "llama2-7b-hf",
    "llama2": "llama2-7b-hf",
    "tinyllama": "tinyllama-1.1b-3T",
    "mistral": "mistral-7b-v0.1",
}


def tokenizer_called(name: str, shared: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(shared / "tokenizers" / FOLDERS.get(name, name))


def collated(rows: list[Row], tokenizer: PreTrainedTokenizerBase, limits: Limits, length: int) -> dict[str, np.ndarray]:
    """All rows as one batch of `length` positions."""
    examples = [example for row in rows for example in build("alpaca").examples(row)]
    dataset, census = encode_all(examples, tokenizer, limits)
    assert len(dataset) == census.examples == len(rows)
    batch = Collator(pad_id(tokenizer), pad_to=length)([dataset[index] for index in range(len(dataset))])
    return {key: tensor.numpy() for key, tensor in batch.items()}


@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: case.stem if case else "none found")
def test_batches_are_the_official_ones(case: Path | None, golden: Path, shared: Path) -> None:
    assert case is not None, f"no data_pipeline_*.npz below {golden}"
    arrays = np.load(case)
    meta = json.loads(str(arrays["meta"]))
    rows = [Row(row, f"{case.name}[{index}]") for index, row in enumerate(meta["rows"])]
    gen_length = arrays["out_gen_input_ids"].shape[1]
    length = arrays["out_model_input_ids"].shape[1]
    limits = Limits(length, gen_length, cut="end", bos=False)

    sides = {"student": ("out_model_", "out_label", "out_loss_mask")}
    teachers = [key for key in arrays if key.startswith("out_teacher_") and key.endswith("_label")]
    assert len(teachers) == 1
    kind = teachers[0].removeprefix("out_").removesuffix("_label")  # "teacher_qwen"
    sides["teacher"] = (f"out_model_{kind}_", f"out_{kind}_label", f"out_{kind}_loss_mask")
    for side, (prefix, label, mask) in sides.items():
        ours = collated(rows, tokenizer_called(meta[side], shared), limits, length)
        np.testing.assert_array_equal(ours["input_ids"], arrays[f"{prefix}input_ids"])
        np.testing.assert_array_equal(ours["attention_mask"], arrays[f"{prefix}attention_mask"])
        np.testing.assert_array_equal(ours["labels"], arrays[label])
        np.testing.assert_array_equal(ours["scored"], arrays[mask])

    student = tokenizer_called(meta["student"], shared)
    for index, row in enumerate(rows):
        prompt = encode_prompt(build("alpaca").prompt(row), student, limits)
        padding = gen_length - len(prompt)
        assert arrays["out_gen_input_ids"][index].tolist() == [pad_id(student)] * padding + prompt
        assert arrays["out_gen_attention_mask"][index].tolist() == [0] * padding + [1] * len(prompt)


@pytest.mark.parametrize("name", RUNS or ["none found"])
def test_micro_batches_are_those_of_the_official_loop(name: str, golden: Path, shared: Path) -> None:
    assert name in RUNS, f"no loop below {golden}"
    run = RUNS[name]
    if "encoded separately" not in run["data"].get("tokenisation", "") or DIGESTS not in run:
        pytest.skip(f"{name}: its batches are not those of the DSKD line's pipeline")
    digests = run[DIGESTS]
    length, size = run["data"]["max_length"], run["batch_size"]
    limits = Limits(length, run["data"]["max_prompt_length"], cut="end", bos=False)
    rows = read_rows(shared / "data" / "dolly" / "train.jsonl", limit=60 * size)
    for side in ("student", "teacher"):
        batch = collated(rows, tokenizer_called(run[side]["tokenizer"], shared), limits, length)
        for ours, theirs in (("input_ids", "input_ids"), ("labels", "label"), ("attention_mask", "attention_mask")):
            digest = hashlib.sha256(np.ascontiguousarray(batch[ours], dtype=np.int64).tobytes()).hexdigest()
            assert digest == digests[f"{side}_{theirs}"], f"{side} {ours}"
