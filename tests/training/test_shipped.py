"""Every recipe that is shipped, run whole on small models: nothing of it but models, data and sizes is replaced."""

from pathlib import Path

import pytest
import yaml

from stillhouse import store
from stillhouse.recipe import parse
from stillhouse.training import run
from tests.toy import write_world

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "accelerate" and path.stem != "table")
ONE_TOKENIZER = ("todi", "taid", "gkd", "distillm", "distillm2", "minillm")  # papers whose pairs share theirs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("shipped"))


def smaller(path: Path, world: Path, output: Path) -> dict[str, object]:
    """What stands in for the models and data of a recipe."""
    keys: dict[str, object] = {
        "student.model": world / "small", "data.train": world / "train.jsonl", "data.eval": world / "dev.jsonl",
        "data.template": "short", "data.max_length": 96, "data.max_prompt_length": 64, "data.eval_limit": 2,
        "training.max_steps": 2, "training.use_cpu": True, "evaluation.max_new_tokens": 4, "output": output,
    }  # fmt: skip
    written = yaml.safe_load(path.read_text())
    if "tokenizer" in written["student"]:
        keys["student.tokenizer"] = world / "small"
    if "train_split" in written["data"]:
        keys |= {"data.train_split": "train", "data.eval_split": "train"}
    if "teacher" in written:
        keys |= {"teacher.model": world / ("large" if path.parent.name in ONE_TOKENIZER else "foreign")}
    return keys


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_recipe_trains(path: Path, world: Path, tmp_path: Path) -> None:
    keys = smaller(path, world, tmp_path)
    verb = "distill" if "teacher.model" in keys else "sft"
    folder = run(parse(verb, [str(path), *(f"--{key}={value}" for key, value in keys.items())]))
    assert (folder / "finished.json").is_file()
    lines = [line for line in store.read_lines(folder / "metrics.jsonl") if '"loss"' in line]
    assert lines and "nan" not in "".join(lines).lower()
