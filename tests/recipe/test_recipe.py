"""Recipes from files, command lines and Python: what is read, what is settled, and that it all reads back."""

from __future__ import annotations

import dataclasses
import random
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.catalogue import METHODS
from stillhouse.mistakes import Mistake
from stillhouse.recipe import (
    Data,
    DemoOptions,
    EvaluateOptions,
    GenerateOptions,
    Recipe,
    Student,
    Teacher,
    dump,
    parse,
)
from stillhouse.recipe.document import read_document
from stillhouse.recipe.names import all_keys, meant
from stillhouse.recipe.trainer_arguments import DEFAULTS, OURS

FOLDERS = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDERS.rglob("*.yaml") if path.parent.name != "accelerate" and path.stem != "table")

WHOLE = """
student: {model: models/small, from_scratch: true, config: {n_layer: 2, resid_pdrop: 0.0}}
teacher: {model: outputs/models/sft/teacher/last, dtype: float16}
data: {train: rows.jsonl, eval: dev.jsonl, limit: 100, bos: false, cut: end}
method: {name: ToDi, kd_rate: 0.3}
training: {learning_rate: 1e-4, lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr_rate: 5e-2}}
evaluation: {seeds: [1, 2]}
seed: 010
"""


@pytest.fixture
def whole(tmp_path: Path) -> str:
    path = tmp_path / "from-teacher.yaml"
    path.write_text(WHOLE)
    return str(path)


def test_reads_a_file(whole: str) -> None:
    recipe = parse("distill", [whole])
    assert recipe.student == Student("models/small", from_scratch=True, config={"n_layer": 2, "resid_pdrop": 0.0})
    assert recipe.teacher == Teacher("outputs/models/sft/teacher/last", dtype="float16")
    assert recipe.data == Data("rows.jsonl", eval="dev.jsonl", limit=100, bos=False, cut="end")
    assert recipe.method == {"name": "todi", "temperature": 2.0, "scale": 1.0, "kd_weight": 0.3}
    expected = {
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
    }
    assert recipe.training == DEFAULTS | expected
    assert recipe.evaluation.seeds == [1, 2]
    assert (recipe.name, recipe.seed, recipe.output) == ("from-teacher", 10, "outputs")
    assert recipe.folder == Path("outputs/small/todi/from-teacher")


def test_the_command_line_overrides_the_file(whole: str) -> None:
    overrides = {
        "--data.limit=null": ("data", "limit", None),
        "--data.bos=true": ("data", "bos", True),
        "--data.train=1e5": ("data", "train", "1e5"),
        "--student.dtype=bfloat16": ("student", "dtype", "bfloat16"),
        "--student.config.n_layer=3": ("student", "config", {"n_layer": 3, "resid_pdrop": 0.0}),
        "--evaluation.temperature=0": ("evaluation", "temperature", 0.0),
        "--evaluation.seeds=[3,4]": ("evaluation", "seeds", [3, 4]),
    }
    recipe = parse("distill", [whole, *overrides])
    assert {(section, key): getattr(getattr(recipe, section), key) for section, key, _ in overrides.values()} == {
        (section, key): value for section, key, value in overrides.values()
    }


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--training.learning_rate", "2e-5"], "learning_rate", 2e-5),
        (["--training.num_train_epochs=2"], "num_train_epochs", 2.0),
        (["--training.bf16=true"], "bf16", True),
        (["--training.report_to=[tensorboard, wandb]"], "report_to", ["tensorboard", "wandb"]),
        (["--training.report_to=wandb"], "report_to", "wandb"),
        (["--training.optim_args=a=1"], "optim_args", "a=1"),
        (["--training.lr_scheduler_kwargs.cycles=2"], "lr_scheduler_kwargs", {"min_lr_rate": 0.05, "cycles": 2}),
    ],
)
def test_training_keys_have_the_types_of_training_arguments(whole: str, words: list[str], key: str, value: Any) -> None:
    settled = parse("distill", [whole, *words]).training[key]
    assert settled == value and type(settled) is type(value)


def test_ways_to_write_an_option(whole: str) -> None:
    apart = parse("distill", ["--config", whole, "--evaluation.seeds", "7", "8", "--overwrite", "--name", "7"])
    joined = parse("distill", [f"--config={whole}", "--evaluation.seeds=[7,8]", "--overwrite=true", "--name=7"])
    assert apart == joined
    assert (apart.evaluation.seeds, apart.overwrite, apart.name) == ([7, 8], True, "7")


def test_other_methods_by_one_word(whole: str) -> None:
    assert parse("distill", [whole, "--method.name=rkl"]).method["name"] == "reverse_kl"
    settled = parse("distill", [whole, "--method=rkl"]).method
    assert settled == {"name": "reverse_kl", "temperature": 2.0, "kd_weight": 0.3}


def test_a_recipe_without_a_file() -> None:
    recipe = parse("sft", ["--student.model=gpt2", "--data.train=rows.jsonl"])
    assert recipe == Recipe(student=Student("gpt2"), data=Data("rows.jsonl"))
    assert recipe.folder == Path("outputs/gpt2/sft/run")
    on_text = parse("sft", ["--student.model=gpt2", "--data.train=rows.jsonl", "--method=sequence_level_kd"])
    assert on_text.method == {"name": "seqkd"}


def test_a_distillation_recipe_fine_tunes_without_its_teacher(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("student: {model: a}\nteacher: {model: b}\ndata: {train: c}\nmethod: todi\n")
    recipe = parse("sft", [str(path), "--teacher=null", "--method=sft"])
    assert recipe.teacher is None and recipe.method == {"name": "sft"}


def test_remote_code_is_allowed_on_the_command_line_only(whole: str) -> None:
    assert parse("distill", [whole, "--student.trust_remote_code"]).student.trust_remote_code is True
    path = Path(whole)
    for value in ("true", "'true'", "yes", "1"):
        path.write_text(WHOLE.replace("dtype: float16", f"trust_remote_code: {value}"))
        with pytest.raises(Mistake) as caught:
            parse("distill", [whole])
        assert caught.value.wrong == "a file cannot allow this"
    recipe = parse("distill", [whole, "--teacher.trust_remote_code=true"])
    assert recipe.teacher is not None and recipe.teacher.trust_remote_code is True


@pytest.mark.parametrize("verb", ["distill", "generate", "evaluate", "report", "demo"])
def test_what_print_config_shows_reads_back(verb: str, whole: str, tmp_path: Path) -> None:
    arguments = {
        "distill": [whole, "--name=1e-4", "--output=no", "--training.warmup_steps=0.1", "--training.adam_epsilon=1e-9"],
        "generate": ["--model=m", "--data=d", "--out=o", "--temperature=0", "--limit=5"],
        "evaluate": ["--model=m", "--data", "a", "b", "--seeds", "1", "--out=here"],
        "report": ["outputs/a", "outputs/b"],
        "demo": ["--seeds=2"],
    }[verb]
    options = parse(verb, arguments)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump(options.as_dict()))
    assert parse(verb, ["--config", str(copy)]) == options


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12),
    st.sampled_from(["1e-4", "no", "on", "null", "~", "010", "1_000", "2024-01-01", "1:30", ".5", "true", "", "-"]),
)
keys = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)


@given(values=st.dictionaries(keys, scalars | st.lists(scalars, max_size=3), max_size=4))
def test_everything_dumped_reads_back(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("dumped") / "r.yaml"
    path.write_text(dump({"name": "x", **values}), encoding="utf-8")
    assert read_document(str(path)).nested() == {"name": "x", **values}


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A good recipe with a piece cut out and something else put in."""
    begin = draw(st.integers(0, len(WHOLE)))
    end = draw(st.integers(begin, min(len(WHOLE), begin + 40)))
    extra = draw(st.text(max_size=8) | st.sampled_from(["{", "}", "[", "*a", "&a ", "!!python/name:os ", "\t", "- "]))
    return WHOLE[:begin] + extra + WHOLE[end:]


@given(text=damaged())
def test_a_damaged_recipe_is_read_or_refused_in_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damaged") / "r.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    said = []
    try:
        parse("distill", [str(path)])
    except Mistake as mistake:
        said = str(mistake).split("\n")
    assert len(said) <= 1


def test_a_recipe_nested_beyond_reason(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("student: " + "[" * 1_500)
    with pytest.raises(Mistake, match="nested too deeply"):
        parse("distill", [str(path)])


def test_places_are_lines_of_the_file(whole: str) -> None:
    document = read_document(whole)
    lines = WHOLE.splitlines()
    for key, place in document.places.items():
        if key:
            line = int(place.rpartition(":")[2])
            assert key.rpartition(".")[2] in lines[line - 1]
    assert document.place("data.unheard.of") == f"{whole}:4"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt2", "gpt2"),
        ("openai/gpt2", "gpt2"),
        ("models/small/", "small"),
        ("outputs/gpt2/sft/base/last", "gpt2"),
        ("/x/outputs/gpt2/sft/base/epoch3_step1050_loss2.1034_rougel27.4410", "gpt2"),
        ("models/last", "last"),
    ],
)
def test_a_run_is_named_after_its_student(model: str, name: str) -> None:
    assert Recipe(student=Student(model), data=Data("d")).folder == Path("outputs") / name / "sft" / "run"


@pytest.mark.parametrize("entry", METHODS.values(), ids=lambda entry: entry.name)
def test_every_name_of_a_method_is_the_method(entry: Any) -> None:
    for alias in (entry.name, *entry.aliases, entry.name.upper(), entry.name.replace("_", "-")):
        teacher = Teacher("t") if entry.needs_teacher else None
        recipe = Recipe(student=Student("s"), teacher=teacher, data=Data("d", eval="e"), method={"name": alias})
        assert recipe.method == {"name": entry.name} | {name: p.default for name, p in entry.parameters.items()}
        assert recipe.folder.parent.name == entry.name


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: Data("d", max_length=0), "data.max_length"),
        (lambda: Data("d", template="chatt"), "data.template"),  # pyright: ignore[reportArgumentType]
        (lambda: Student("s", config={"n_layer": 1}), "student.config"),
        (lambda: Recipe(student=Student("s"), data=Data("d"), training={"lr": 1}), "training.lr"),
        (lambda: Recipe(student=Student("s"), data=Data("d"), method={}), "method.name"),
        (lambda: Recipe(student=Student("s"), data=Data("d"), method={"name": "todi"}), "teacher.model"),
        (lambda: Recipe(student={"model": "s"}, data=Data("d")), "student"),  # pyright: ignore[reportArgumentType]
        (lambda: GenerateOptions(model="m", data="d", out="o", max_prompt_length=512), "max_prompt_length"),
        (lambda: EvaluateOptions(model="m", data=[]), "data"),
        (lambda: DemoOptions(workers=0), "workers"),
    ],
)
def test_recipes_in_python_are_held_to_the_same_rules(make: Any, where: str) -> None:
    with pytest.raises(Mistake) as caught:
        make()
    assert caught.value.where == where


def test_a_recipe_is_a_value() -> None:
    recipe = Recipe(student=Student("s"), data=Data("d"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert dataclasses.replace(recipe, seed=3).seed == 3
    defaults = Recipe(student=Student("s"), data=Data("d"))
    recipe.evaluation.seeds.append(99)
    assert defaults.evaluation.seeds == [10] == Recipe(student=Student("s"), data=Data("d")).evaluation.seeds


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_that_is_shipped(path: Path) -> None:
    verb = "distill" if "-from-" in path.stem else "sft"
    recipe = parse(verb, [str(path)])
    assert recipe.name == path.stem
    assert yaml.safe_load(path.read_text()).keys() <= {field.name for field in dataclasses.fields(Recipe)}


def test_todi_recipes_have_the_settings_of_its_scripts() -> None:
    folder = Path(__file__).parents[2] / "recipes" / "todi"
    distil = parse("distill", [str(folder / "gpt2-base-from-gpt2-xl.yaml")])
    student = parse("sft", [str(folder / "sft-gpt2-base.yaml")])
    for recipe in (distil, student):
        training = recipe.training
        assert training["learning_rate"] == 5e-4 and training["num_train_epochs"] == 20 and training["parity"]
        assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 32
        assert (training["weight_decay"], training["max_grad_norm"], training["warmup_steps"]) == (0.01, 1.0, 0.0)
        assert (recipe.data.max_length, recipe.data.max_prompt_length, recipe.data.cut) == (512, 256, "end")
        assert recipe.seed == 10 and len(recipe.evaluation.seeds) == 3
    assert distil.method == {"name": "todi", "temperature": 2.0, "scale": 1.0, "kd_weight": 0.5}
    assert distil.teacher is not None
    teacher = parse("sft", [str(folder / "sft-gpt2-xl.yaml")])
    assert distil.teacher.model == str(teacher.folder / "last")


def test_todi_recipes_of_llama_are_adapters_with_the_papers_settings() -> None:
    folder = Path(__file__).parents[2] / "recipes" / "todi"
    distil = parse("distill", [str(folder / "tinyllama-from-llama2.yaml")])
    teacher = parse("sft", [str(folder / "sft-llama2.yaml")])
    for recipe, batch in ((distil, 4), (teacher, 8)):
        training = recipe.training
        assert recipe.student.lora == {"r": 256, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": None}
        assert training["learning_rate"] == 1e-3 and training["num_train_epochs"] == 10 and training["parity"]
        assert training["per_device_train_batch_size"] == batch and training["activation_checkpointing"]
        assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 32
        assert (recipe.data.max_length, recipe.data.max_prompt_length, recipe.data.cut) == (512, 256, "end")
    assert (distil.method["temperature"], distil.method["kd_weight"]) == (2.0, 0.5)
    assert distil.teacher is not None and distil.teacher.model == str(teacher.folder)


def typo(word: str, rng: random.Random) -> str:
    """One letter left out, two swapped, one replaced or one too many."""
    at, letter = rng.randrange(len(word) - 1), rng.choice(string.ascii_lowercase)
    return rng.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + letter + word[at + 1 :],
            word[:at] + letter + word[at:],
        ]
    )


def test_did_you_mean_is_right_on_95_of_100_typos() -> None:
    # A typo in a name of one letter leaves nothing of it.
    keys = [key for key in all_keys(Recipe) if len(key.rpartition(".")[2]) > 1]
    rng = random.Random(20240229)
    wrong, asked = [], 0
    for key in rng.sample(keys, 110):
        section, dot, leaf = key.rpartition(".")
        misspelt = section + dot + typo(leaf, rng)
        if misspelt not in keys:
            asked += 1
            wrong += [(misspelt, meant(misspelt, keys))] if meant(misspelt, keys) != key else []
    assert asked >= 100
    assert len(wrong) <= 0.05 * asked, wrong


@pytest.mark.slow
def test_training_keys_are_those_of_the_real_training_arguments() -> None:
    from transformers import SchedulerType, TrainingArguments
    from transformers.training_args import OptimizerNames

    from stillhouse.recipe.trainer_arguments import RESERVED, arguments

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    assert arguments().keys() - OURS.keys() == fields.keys() - RESERVED.keys()
    assert DEFAULTS.keys() - OURS.keys() <= fields.keys()
    assert set(arguments()["lr_scheduler_type"].choices) == {member.value for member in SchedulerType}
    assert set(arguments()["optim"].choices) == {member.value for member in OptimizerNames}
    for name, argument in arguments().items():
        if name not in OURS and argument.annotation in (int, float, bool, str):
            default = fields[name].default
            assert isinstance(default, (argument.annotation, int)), (name, default)
