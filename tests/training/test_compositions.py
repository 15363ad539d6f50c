"""Every method with every aligner and every vocabulary: what a recipe says of them counts, or is refused."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from stillhouse.catalogue import ALIGNERS, METHODS, VOCABULARIES
from stillhouse.catalogue.compositions import EXAMPLES, goes_together
from stillhouse.catalogue.correspondence import alignment_of, vocabulary_of
from stillhouse.data.encode import Limits
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build as build_template
from stillhouse.head import Head
from stillhouse.methods import Clock, Method, Terms, build
from stillhouse.mistakes import Mistake
from stillhouse.models import load_causal_lm
from stillhouse.recipe import Recipe, check, parse
from stillhouse.teacher import LiveTeacher
from stillhouse.training import run
from stillhouse.training.distiller import Distiller
from stillhouse.training.preflight import tokenizers_of
from stillhouse.training.prepare import _collator
from stillhouse.training.two_tokenizers import TwoTokenizers
from tests import toy
from tests.training.test_run import recipe, weights

WITH_TEACHER = [name for name, entry in METHODS.items() if entry.needs_teacher and not entry.one_tokenizer]
MERGES = ("first", "last", "mean")
ALIGNMENTS: list[dict[str, Any]] = [
    *({"name": name} for name, entry in ALIGNERS.items() if "merge" not in entry.parameters),
    *({"name": name, "merge": merge} for name in ALIGNERS if "merge" in ALIGNERS[name].parameters for merge in MERGES),
]
MAPS: list[dict[str, Any]] = [
    *({"name": name} for name in VOCABULARIES if name not in ("file", "exact")),
    {"name": "exact", "ignore_space": False},
    {"name": "exact", "ignore_space": True},
    {"name": "cdm", "threshold": 0.0},
    {"name": "cdm", "top_k": 5},
    *({"name": name, "many": "first"} for name in ("prefix", "min_edit")),
]


class World:
    """A student, a teacher with another tokenizer, and what any recipe makes of a batch of theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = toy.write_world(folder)
        # Else every token of the teacher is one of the student's, and all maps are the same.
        texts = ["answered is What plusses", "answers times", "plus 1 9", "is 12. isThe"] * 5
        toy.write_model(folder / "foreign", 3, hidden=24, entries=290, sharp=20.0, texts=texts)
        self.student, self.theirs = (load_causal_lm(str(self.folder / name)) for name in ("small", "foreign"))

    def recipe(self, method: dict[str, Any], **axes: Any) -> Recipe:
        tree = {
            "student": {"model": str(self.folder / "small")},
            "teacher": {"model": str(self.folder / "foreign")},
            "data": {"train": str(self.folder / "train.jsonl"), "template": "short", "max_length": 96,
                     "max_prompt_length": 64},
            "method": method,
            **({} if METHODS[method["name"]].rollout is None else {"rollout": {"source": "dataset"}}),
            **axes,
        }  # fmt: skip
        path = self.folder / "recipe.yaml"
        path.write_text(json.dumps(tree))
        return parse("distill", [str(path)])

    @cached_property
    def tokenizers(self) -> tuple[Any, Any]:
        """The student's and the teacher's, which every recipe has."""
        found = tokenizers_of(self.recipe({"name": "todi"}))[0]
        return found.student, found.teacher

    def method(self, of: Recipe) -> tuple[Method, TwoTokenizers]:
        two = TwoTokenizers.of(of, *self.tokenizers)
        made = build(**of.method)
        two.given_to(made)
        heads = (
            Head.of(model, len(side))
            for model, side in zip((self.student, self.theirs), (two.student, two.teacher), strict=True)
        )
        made.size(*heads, 10)
        return made, two

    def terms(self, of: Recipe, learnt: dict[str, Tensor] | None = None) -> Terms:
        """What the method says of all examples in one batch, with what it has of `learnt`."""
        method, two = self.method(of)
        method.load_state_dict(learnt or {}, strict=False)
        template = build_template("short", two.student)
        data = two.encoded(of, read_rows(str(self.folder / "train.jsonl")), template, Limits(96, 64))
        batch = _collator(of, two.student, two, method)([data[index] for index in range(len(data))])
        teacher = LiveTeacher(self.theirs, len(two.teacher), 1)
        distiller = Distiller(self.student, method, teacher, len(two.student), two.translation)
        names = ("input_ids", "attention_mask", "labels", "scored_at", "teacher", "pairing")
        with torch.no_grad():
            return Terms(*distiller(**{name: batch[name] for name in names}, clock=Clock(step=5, steps=10)))


def effective(of: Recipe) -> tuple[Any, Any]:
    """Both axes, with what the method has where the recipe says nothing."""
    alignment = alignment_of(of.entry, of.alignment)
    return alignment, vocabulary_of(of.entry, of.vocabulary, alignment)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_what_is_said_of_an_axis_counts_or_is_refused(world: World, name: str) -> None:
    """Every accepted section gives another loss than the method's own, unless it says the same."""
    plain = world.recipe({"name": name})
    own = effective(plain)
    loss = world.terms(plain).loss
    accepted, idle, refused = 0, [], []
    for axes in ({"alignment": said} for said in ALIGNMENTS), ({"vocabulary": said} for said in MAPS):
        for said in axes:
            try:
                of = world.recipe({"name": name}, **said)
            except Mistake as mistake:
                refused.append(mistake.where)
                continue
            accepted += 1
            terms = world.terms(of)
            assert terms.sums.get("aligned", loss) > 0, said
            if (terms.loss == loss) != (effective(of) == own):
                idle.append(said)
            assert goes_together(METHODS[name], said.get("alignment"), said.get("vocabulary"))
    assert idle == [] and accepted
    assert all(re.search(r"\b(alignment|vocabulary)\b", where) for where in refused)


@pytest.mark.parametrize("form", ["mcw", "official"])
def test_every_form_of_uld_compares_what_is_aligned_in_training(world: World, form: str) -> None:
    """The released form weighs rows itself, and so must ask for them."""
    late = {"alignment": {"name": "entropy_dtw"}}
    found = world.terms(world.recipe({"name": "uld", "form": form}, **late))
    others = world.terms(world.recipe({"name": "uld"}, **late))
    assert found.sums["kd"] > 0 and found.sums["aligned"] == others.sums["aligned"] > 0
    torch.testing.assert_close(found.loss, found.sums["ce"] + {"mcw": 1.0, "official": 1.5}[form] * found.sums["kd"])


TRANSPORTS = ("mcw_kd", "mcw_kd_dual")
BY_MAP = ({"name": "cdm", "top_k": 20}, {"name": "overlap"})


@pytest.mark.parametrize("aligner", ["span", "entropy_dtw"])
@pytest.mark.parametrize("vocabulary", BY_MAP, ids=[said["name"] for said in BY_MAP])
@pytest.mark.parametrize("name", TRANSPORTS)
def test_transports_beside_a_vocabulary_are_the_sum_of_the_pieces(
    world: World, name: str, vocabulary: dict[str, Any], aligner: str
) -> None:
    """CE and KD of the divergence by that vocabulary, and the transports as they are beside cross-model attention."""
    axes = {"alignment": {"name": aligner}, "vocabulary": vocabulary}
    settings = {"logit_weight": 2.0, "hidden_weight": 3.0, "kd_weight": 0.7, "temperature": 1.5, "divergence": "todi"}
    both = world.recipe({"name": name, **settings}, **axes)
    method = world.method(both)[0]
    assert set(method.get_submodule("projectors")._modules) == {"ot", "salience"}
    found = world.terms(both)
    words = world.terms(world.recipe({"name": "todi", "temperature": 1.5}, **axes))
    alone = world.recipe({"name": name, **settings}, alignment=axes["alignment"])
    transports = world.terms(alone, method.state_dict())
    parts = [words.sums["ce"] * (1.0 if name == "mcw_kd" else 0.5), words.sums["kd"] * 0.7]
    parts += [transports.sums["ot_logits"] * 2.0, transports.sums["ot_hidden"] * 3.0]
    assert all(part.item() > 0 for part in parts)
    torch.testing.assert_close(found.loss, torch.stack(parts).sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_transports_beside_cdm_train_everything(world: World, tmp_path: Path, name: str) -> None:
    options = [f"--method={name}", f"--teacher.model={world.folder / 'foreign'}", "--alignment=span"]
    of = recipe(world.folder, tmp_path, *options, "--vocabulary=cdm", "--training.max_steps=4")
    before = world.method(of)[0].state_dict() | weights(world.folder / "small")
    folder = run(of) / "last"
    after = load_file(folder / "method.safetensors") | weights(folder)
    counters = {"forwards", "cost_weights"}  # parity's alone; anew every so many steps
    assert after.keys() == before.keys()
    assert {key for key, value in after.items() if torch.equal(value, before[key])} == counters


def example(world: World, title: str, output: Path) -> Recipe:
    """The recipe of an example of docs/compositions.md, between the small models."""
    said = yaml.safe_load(EXAMPLES[title])
    tree: dict[str, Any] = {
        "student": {"model": str(world.folder / "small"), **said.pop("student", {})},
        "teacher": {"model": str(world.folder / "foreign")},
        "data": {"train": str(world.folder / "train.jsonl"), "template": "short", "max_length": 96,
                 "max_prompt_length": 64, **said.pop("data", {})},
        "training": {"max_steps": 2, "use_cpu": True},
        "output": str(output),
    }  # fmt: skip
    path = output / "recipe.yaml"
    path.write_text(json.dumps(tree | said))
    return parse("distill", [str(path)])


@pytest.mark.parametrize("title", EXAMPLES)
def test_every_example_is_a_right_recipe(world: World, tmp_path: Path, title: str) -> None:
    check(example(world, title, tmp_path))


def test_an_example_trains(world: World, tmp_path: Path) -> None:
    title = next(title for title in EXAMPLES if "packed" in title)
    assert (run(example(world, title, tmp_path)) / "finished.json").is_file()
