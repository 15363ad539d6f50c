"""Alignments of the official implementations: MinED's pairs, and the warped paths of MCW-KD's data pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stillhouse.alignment import EditDistances, edit_path, one_to_one, warp
from tests.golden.test_data_pipeline import CASES, GOLDEN, tokenizer_called

MINED = sorted((GOLDEN / "cross_tokenizer").glob("mined_*.npz"))
MARKERS = {"gpt2": "Ġ", "qwen": "Ġ", "tinyllama": "▁", "llama": "▁", "mistral": "▁"}


@pytest.mark.parametrize("case", MINED or [None], ids=lambda case: case.stem if case else "none found")
def test_pairs_are_those_of_mined(case: Path | None, golden: Path):
    assert case is not None, f"no mined_*.npz below {golden}"
    arrays = np.load(case)
    meta = json.loads(str(arrays["meta"]))
    tables = [
        [token.replace(MARKERS[meta[side]], "") for token in meta[f"{side}_vocab"]] for side in ("student", "teacher")
    ]
    distances = EditDistances(tables[0], tables[1])
    for sample, official in enumerate(arrays["out_alignment"]):
        at_s, at_t = (np.flatnonzero(arrays[f"in_{side}_label"][sample] != -100) for side in ("stu", "tea"))
        student, teacher = arrays["in_stu_input_ids"][sample][at_s], arrays["in_tea_input_ids"][sample][at_t]
        pairs = one_to_one(warp(distances(student, teacher)), student, teacher, arrays["in_tea2stu"])
        ours = np.full_like(official, -1)
        ours[at_s] = np.where(pairs >= 0, at_t[pairs], -1)
        np.testing.assert_array_equal(ours, official)
        assert (official >= 0).any()


@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: case.stem if case else "none found")
def test_paths_are_those_of_mcw(case: Path | None, golden: Path, shared: Path):
    assert case is not None, f"no data_pipeline_*.npz below {golden}"
    arrays = np.load(case)
    meta = json.loads(str(arrays["meta"]))
    tokenizers = {side: tokenizer_called(meta[side], shared) for side in ("student", "teacher")}
    (kind,) = {
        key.removeprefix("out_model_").removesuffix("_input_ids")
        for key in arrays
        if "model_teacher" in key and key.endswith("ids")
    }
    prefixes = {"student": "out_model_", "teacher": f"out_model_{kind}_"}
    for sample in range(len(meta["rows"])):
        words = {}
        for side, prefix in prefixes.items():
            attended = arrays[f"{prefix}attention_mask"][sample] > 0
            ids = arrays[f"{prefix}input_ids"][sample][attended].tolist()
            words[side] = tokenizers[side].convert_ids_to_tokens(ids, skip_special_tokens=True)
        for key, first, second in (("s2t", "student", "teacher"), ("t2s", "teacher", "student")):
            official = arrays[f"out_dtw_{key}_{sample}"]  # from the end to the start
            np.testing.assert_array_equal(edit_path(words[first], words[second])[::-1], official)
