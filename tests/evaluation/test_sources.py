"""The papers' data sets by their names: where each is found, what of it is used, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.catalogue.instructions import GROUPS, SETS
from stillhouse.data.rows import may_be_hub_name
from stillhouse.evaluation import sources
from stillhouse.evaluation.sources import rows_of
from stillhouse.mistakes import Mistake
from stillhouse.recipe import EvaluateOptions, check
from stillhouse.recipe.data_sets import Source

LONG, SHORT = " ".join("abcdefghijk"), "ten words are not enough for this set of rows"


def lay(path: Path, *answers: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"ask {number}", "output": answer} for number, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(*data: str, **others: Any) -> EvaluateOptions:
    return EvaluateOptions(model="m", data=list(data), **others)


def test_every_group_names_sets_and_every_set_a_place_on_the_hub() -> None:
    assert {name for group in GROUPS.values() for name in group} <= SETS.keys()
    for known in SETS.values():
        assert may_be_hub_name(known.hub)
        assert not Path(known.hub).exists()


def test_a_set_is_looked_for_in_the_folder_first(tmp_path: Path) -> None:
    dolly = lay(tmp_path / "dolly" / "valid.jsonl", "x")
    sinst = lay(tmp_path / "sinst" / "11_" / "test.jsonl", LONG)
    found = options("dskd", data_folder=str(tmp_path)).sources
    assert [source.name for source in found] == list(GROUPS["dskd"])
    assert [source.rows for source in found if not source.on_the_hub] == [str(dolly), str(sinst)]
    lay(tmp_path / "dolly" / "test.jsonl", "x")
    assert options("dolly", data_folder=str(tmp_path)).sources[0].rows == str(tmp_path / "dolly" / "test.jsonl")


def test_a_file_of_the_users_goes_before_a_set_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path / "vicuna" / "test.jsonl", "x")
    monkeypatch.chdir(tmp_path)
    (source,) = options("vicuna").sources
    assert (source.name, source.rows, source.known) == ("vicuna", "vicuna", None)


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    other = lay(tmp_path / "other" / "dolly" / "test.jsonl", "x")
    with pytest.raises(Mistake, match=r"is called 'dolly' as .* is; evaluate them apart"):
        _ = options("dolly", str(other), data_folder=str(tmp_path)).sources


def test_short_references_are_left_out_and_counted(tmp_path: Path) -> None:
    path = lay(tmp_path / "test.jsonl", LONG, SHORT, LONG + " and more", SHORT, LONG)
    rows, remarks = rows_of(Source("s-ni", str(path), SETS["s-ni"]), None)
    assert [row.fields["instruction"] for row in rows] == ["ask 0", "ask 2", "ask 4"]
    assert remarks == ["s-ni: 2 rows with a reference of fewer than 11 words left out"]
    assert len(rows_of(Source("s-ni", str(path), SETS["s-ni"]), 2)[0]) == 2
    assert len(rows_of(Source("mine", str(path)), None)[0]) == 5
    none = lay(tmp_path / "none.jsonl", SHORT)
    with pytest.raises(Mistake, match="no reference of its 1 rows has 11 words"):
        rows_of(Source("s-ni", str(none), SETS["s-ni"]), None)


def test_a_sets_own_limit_holds(tmp_path: Path) -> None:
    path = lay(tmp_path / "test.jsonl", *[LONG] * 10_050)
    assert len(rows_of(Source("un-ni", str(path), SETS["un-ni"]), None)[0]) == 10_000
    assert len(rows_of(Source("un-ni", str(path), SETS["un-ni"]), 20_000)[0]) == 10_000
    assert len(rows_of(Source("un-ni", str(path), SETS["un-ni"]), 7)[0]) == 7


def test_rows_of_the_hub_are_read_as_they_are_named_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"dialogue": "A: hi\nB: bye", "summary": "They part."}]
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    real = sources.read_rows
    monkeypatch.setattr(sources, "read_rows", lambda name, **given: real(tmp_path / "hub.jsonl", **given))
    known = SETS["dialogsum"]
    ((row,), remarks) = rows_of(Source("dialogsum", known.hub, known), None)
    assert row.fields == {"instruction": known.asks, "input": "A: hi\nB: bye", "output": "They part."}
    assert remarks == ["dialogsum: not in the data folder, taken from the Hub: knkarthick/dialogsum"]


def test_without_a_network_it_is_said_where_a_file_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    known = SETS["un-ni"]
    with pytest.raises(Mistake) as said:
        rows_of(Source("un-ni", known.hub, known), None)
    assert str(said.value) == (
        "un-ni: is not in --data_folder, and MiniLLM/uinst:11_/valid.jsonl cannot be had from the Hub; "
        "put its test.jsonl into a folder 'uinst/11_' below --data_folder"
    )


def test_the_dskd_protocol_settles_what_it_names() -> None:
    settled = options("x.jsonl", protocol="dskd")
    assert (settled.no_repeat_ngram_size, settled.cut, settled.temperature) == (6, "end", 1.0)
    assert (options("x.jsonl").no_repeat_ngram_size, options("x.jsonl").cut) == (0, "marker")
    for key, value in (("temperature", 0.5), ("top_p", 0.9), ("no_repeat_ngram_size", 3)):
        with pytest.raises(Mistake, match=f"{key}: is .*, but protocol dskd has"):
            options("x.jsonl", protocol="dskd", **{key: value})


def test_a_broken_row_of_a_named_set_is_found_before_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path / "dolly" / "test.jsonl", "x", "")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "model.safetensors").write_text("-")
    with pytest.raises(Mistake, match=r"test.jsonl:2"):
        check(EvaluateOptions(model=str(tmp_path), data=["dolly"], data_folder=str(tmp_path)))


def test_a_row_without_an_answer_is_left_to_whoever_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"instruction": "ask"}\n')
    assert len(rows_of(Source("dolly", str(path), SETS["dolly"]), None)[0]) == 1
