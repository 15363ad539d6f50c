import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stillhouse
from stillhouse.mistakes import LONGEST_LINE, Mistake
from stillhouse.recipe import dump, parse
from stillhouse.suite.plan import plan
from tests.suite.small import INSTRUCT, RECIPE, ROWS, job, options, write_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_folder(folder)
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def words(command: tuple[str, ...]) -> list[str]:
    return list(command[command.index("stillhouse") + 1 :])


def parsed(command: tuple[str, ...]) -> Any:
    verb, *rest = words(command)
    if verb == "evaluate" and not rest[0].startswith("--"):
        verb, rest = f"{verb} {rest[0]}", rest[1:]
    return parse(verb, rest)


def refused(*arguments: str, **changes: Any) -> str:
    with pytest.raises(Mistake) as caught:
        plan(options(*arguments, **changes))
    assert len(str(caught.value)) <= LONGEST_LINE
    return str(caught.value)


def test_every_row_is_trained_and_scored_once_a_seed(folder: Path) -> None:
    lines = plan(options())
    assert [[training.title for training in line.trainings.values()] for line in lines] == [
        [], ["SFT, seed 3", "SFT, seed 4"], ["FKL, seed 3", "FKL, seed 4"], ["ToDi, seed 3", "ToDi, seed 4"],
    ]  # fmt: skip
    scored = [[scoring.title for every in line.scorings.values() for scoring in every] for line in lines]
    assert scored[:2] == [["Base: instruct"], ["SFT, seed 3: instruct", "SFT, seed 4: instruct"]]
    recipe = parsed(job(lines, "ToDi, seed 4").command)
    assert (recipe.seed, recipe.method["name"], recipe.training["learning_rate"]) == (4, "todi", 0.2)
    assert recipe.training["logging_steps"] == 1 and recipe.folder == Path("out/runs/small/todi/ToDi-seed4")
    evaluated = parsed(job(lines, "ToDi, seed 4: instruct").command)
    assert (evaluated.model, evaluated.out) == (str(recipe.folder), "out/scores/ToDi-seed4/instruct")
    assert (evaluated.data, evaluated.seeds, evaluated.max_new_tokens) == (["one.jsonl", "two.jsonl"], [1, 2], 10)
    assert parsed(job(lines, "Base: instruct").command).model == "small"


@pytest.mark.parametrize("way", [{"method": "sft"}, {"method.name": "sft"}, {"method": {"name": "SFT"}}])
def test_sft_over_a_recipe_of_another_method_has_no_teacher(folder: Path, way: dict[str, Any]) -> None:
    common = {"teacher.dtype": "float32", "alignment": "span", "method.kd_weight": 0.2, "training.warmup_steps": 5}
    lines = plan(options(rows=[{"name": "SFT", **way}], set=common))
    command = job(lines, "SFT, seed 3").command
    assert words(command)[0] == "sft"
    recipe = parsed(command)
    assert recipe.teacher is None and recipe.alignment is None and recipe.method["name"] == "sft"
    assert recipe.training["warmup_steps"] == 5


def test_another_method_by_its_short_form(folder: Path) -> None:
    recipe = parsed(job(plan(options(rows=[{"name": "A", "method": "jsd"}])), "A, seed 3").command)
    assert recipe.method["name"] == "jsd" and recipe.method["kd_weight"] == 0.7


def test_a_row_goes_before_what_all_have(folder: Path) -> None:
    rows = [{"name": "A", "training": {"max_steps": 9}}, {"name": "B"}]
    lines = plan(options("--set.training.max_steps=5", rows=rows))
    assert [parsed(job(lines, f"{name}, seed 3").command).training["max_steps"] for name in "AB"] == [9, 5]


def test_another_rows_run_is_the_same_seeds(folder: Path) -> None:
    lines = plan(options(evaluate={"agreement": {"data": ["one.jsonl"], "teacher": "{SFT}"}}))
    ours = job(lines, "FKL, seed 4")
    assert ours.needs == ("SFT, seed 4",)
    assert parsed(ours.command).student.model == "out/runs/small/sft/SFT-seed4"
    scoring = job(lines, "ToDi, seed 4: agreement")
    assert set(scoring.needs) == {"ToDi, seed 4", "SFT, seed 4"}
    assert parsed(scoring.command).teacher == "out/runs/small/sft/SFT-seed4"


def test_a_model_of_a_row_stands_for_it(folder: Path) -> None:
    rows = [{"name": "Big", "model": "large"}, {"name": "A", "teacher.model": "{Big}"}]
    made = job(plan(options(rows=rows)), "A, seed 3")
    assert parsed(made.command).teacher.model == "large" and made.needs == ()


def test_the_folder_of_a_run_that_begins_with_a_run_is_known_before_either(folder: Path, tmp_path: Path) -> None:
    """A run of a run goes by its student's name, which is only to be seen once that run is there."""
    changes = {"output": str(tmp_path / "out"), "rows": [ROWS[1], ROWS[2]]}
    before = plan(options(**changes))[1].trainings[3]
    first = plan(options(**changes))[0].trainings[3].folder
    first.mkdir(parents=True)
    (first / "recipe.yaml").write_text("-")
    assert before.folder == before.recipe.folder == tmp_path / "out/runs/small/forward_kl/FKL-seed3"


def test_nested_settings_of_an_evaluation_arrive(folder: Path) -> None:
    chosen = {"data": ["one.jsonl"], "teacher": "large", "alignment": {"name": "exact"}, "vocabulary": "exact"}
    lines = plan(options(evaluate={"agreement": chosen}))
    found = parsed(job(lines, "Base: agreement").command)
    assert (found.alignment["name"], found.vocabulary["name"]) == ("exact", "exact")


def test_a_launcher_stands_before_trainings(folder: Path) -> None:
    lines = plan(options(f"--launcher={sys.executable} -X dev"))
    assert job(lines, "SFT, seed 3").command[:5] == (sys.executable, "-X", "dev", "-m", "stillhouse")
    assert job(lines, "SFT, seed 3: instruct").command[:3] == (sys.executable, "-m", "stillhouse")
    assert "no program 'nowhere -n 2'" in refused("--launcher=nowhere -n 2")


def test_generated_code_runs_if_the_command_line_says_so(folder: Path) -> None:
    problem = {"task_id": "a/0", "entry_point": "f", "prompt": "def f():\n", "test": "def check(c):\n  assert c()\n"}
    Path("problems.jsonl").write_text(json.dumps(problem))
    evaluate = {"code": {"data": ["problems.jsonl"]}}
    closed = parsed(job(plan(options(evaluate=evaluate)), "Base: code").command)
    assert not closed.run_generated_code
    open_ = parsed(job(plan(options("--run-generated-code", evaluate=evaluate)), "Base: code").command)
    assert open_.run_generated_code


BAD_ROWS = [
    ({"name": "A", "methd.name": "jsd"}, "rows[1], A: distill: unknown option '--methd.name'"),
    ({"name": "A", "training.learning_rat": 1}, "rows[1], A: distill: unknown option '--training.learning_rat'"),
    ({"name": "A", "method.name": "toodi"}, "rows[1], A: --method.name: unknown method 'toodi'"),
    ({"name": "A", "method.beta": 1}, "rows[1], A: --method.beta: unknown setting of todi 'beta'"),
    ({"name": "A", "data.train": "trian.jsonl"}, "rows[1], A: data.train: no file 'trian.jsonl'"),
    ({"name": "A", "recipe": "recpe.yaml"}, "rows[1], A: recpe.yaml: no such recipe; did you mean 'recipe.yaml'?"),
    ({"name": "A", "recipe": "a\0.yaml"}, "rows[1], A: 'a\\x00.yaml': cannot be a file's name; write it in plain"),
    ({"name": "A", "student.model": "{B}"}, "rows[1], A: student.model: unknown row above this one 'B'; it has none"),
    ({"name": "A", "model": "smal"}, "rows[1], A: model: 'smal'"),
    ({"name": "A", "student.trust_remote_code": True}, "rows[1], A: --student.trust_remote_code: a file cannot allow"),
    (
        {"name": "A", "rollout.source": "student", "rollout.server": "http://example.org"},
        "rows[1], A: --rollout.server: a file",
    ),
    (
        {"name": "A", "rollout.source": "student", "rollout.server=http://example.org/?": 1},
        "rows[1], A: --rollout.server: a file",
    ),
    ({"name": "A", "student": {"trust-remote-code": True}}, "rows[1], A: "),
]


@pytest.mark.parametrize(("row", "says"), BAD_ROWS, ids=[says[11:50] for _, says in BAD_ROWS])
def test_what_is_wrong_with_a_row(folder: Path, row: dict[str, Any], says: str) -> None:
    if row.get("model") == "smal":
        row, says = {"name": "A", "model": "./smal"}, "rows[1], A: model: no folder './smal'"
    assert refused(rows=[row]).startswith(says)


def test_a_row_is_not_its_own_model(folder: Path) -> None:
    rows = [{"name": "A", "student.model": "{A}"}, {"name": "B", "student.model": "{C}"}, {"name": "C"}]
    assert "unknown row above this one 'A'" in refused(rows=rows)
    assert "rows[1], B: student.model: unknown row above this one 'C'" in refused(rows=rows[1:])


def test_rows_that_need_others_are_looked_at_too(folder: Path) -> None:
    Path("broken.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": \n')
    says = refused(rows=[{"name": "T"}, {"name": "A", "teacher.model": "{T}", "data.train": "broken.jsonl"}])
    assert says.startswith("rows[2], A: broken.jsonl:2: ")


def test_a_key_misspelt_for_all_names_the_first_row(folder: Path) -> None:
    assert refused(set={"training.max_step": 2}).startswith("rows[2], SFT: sft: unknown option '--training.max_step'")


EVALUATIONS = [
    ({"instruct": {**INSTRUCT, "limt": 2}}, "evaluate.instruct: unknown option '--limt'; did you mean '--limit'?"),
    ({"instruct": {**INSTRUCT, "limit": 0}}, "evaluate.instruct: --limit: must be at least 1, got 0"),
    ({"instruct": {**INSTRUCT, "data": ["on.jsonl"]}}, "evaluate.instruct.data: no file 'on.jsonl'"),
    ({"agreement": {"data": ["one.jsonl"], "teacher": "./larg"}}, "evaluate.agreement.teacher: no folder './larg'"),
    (
        {"code": {"data": ["one.jsonl"], "run_generated_code": True}},
        "evaluate.code: --run_generated_code: a file cannot allow",
    ),
    (
        {"code": {"data": ["one.jsonl"], "run-generated-code": True}},
        "evaluate.code: --run_generated_code: a file cannot allow",
    ),
    (
        {"instruct": {**INSTRUCT, "trust_remote_code": True}},
        "evaluate.instruct: --trust_remote_code: a file cannot allow",
    ),
    ({"code": {"data": ["one.jsonl"], "sandbox": "none"}}, "evaluate.code: --sandbox: a file cannot allow this"),
    ({"instruct": {**INSTRUCT, "server": "http://example.org"}}, "evaluate.instruct: --server: a file cannot have"),
    (
        {"judge": {"data": "q.jsonl", "judge": "http://127.0.0.1:9/v1", "judge_model": "j", "key_variable": "KEY"}},
        "evaluate.judge: --key_variable: a file cannot name a key of yours; remove it, and give --key_variable on ",
    ),
]


@pytest.mark.parametrize(("evaluate", "says"), EVALUATIONS, ids=[says[9:50] for _, says in EVALUATIONS])
def test_what_is_wrong_with_an_evaluation(folder: Path, evaluate: dict[str, Any], says: str) -> None:
    assert refused(evaluate=evaluate).startswith(says)
    if "code" in evaluate:
        assert refused("--run-generated-code", evaluate=evaluate).startswith("evaluate.code")


def test_what_the_mend_names_can_be_typed(folder: Path) -> None:
    far, student = "http://example.org:8000", {"rollout.source": "student"}
    rows: list[dict[str, Any]] = [{"name": "A", **student}]
    says = refused(rows=[{"name": "A", **student, "rollout.server": far}])
    assert says.endswith("remove it, and give --set.rollout.server on the command line")
    typed = f"--set.rollout.server={far}"
    recipe = parsed(job(plan(options(typed, rows=rows)), "A, seed 3").command)
    assert recipe.rollout["server"] == far
    assert far in dump(options(typed, rows=rows).as_dict())  # as --print_config shows it
    evaluate = {"instruct": {**INSTRUCT, "server": far}}
    says = refused(rows=rows, evaluate=evaluate)
    assert says.endswith("remove it, and give --evaluate.instruct.server on the command line")
    lines = plan(options(f"--evaluate.instruct.server={far}", rows=rows, evaluate=evaluate))
    assert parsed(job(lines, "A, seed 3: instruct").command).server == far


def test_a_key_goes_to_no_judge_of_another_machine_that_a_file_names(folder: Path) -> None:
    Path("q.jsonl").write_text('{"question_id": 1, "category": "math", "turns": ["a", "b"]}\n')
    far, near = "https://example.org/v1", "http://127.0.0.1:9/v1"

    def asked(judge: str | None) -> dict[str, Any]:
        return {"judge": {"data": "q.jsonl", "judge_model": "j", **({"judge": judge} if judge else {})}}

    says = refused("--key_variable=KEY", evaluate=asked(far))
    assert says == (
        "evaluate.judge: --judge: a file cannot have prompts sent to another machine; "
        "remove it, and give --judge on the command line"
    )
    with pytest.raises(Mistake, match=r"suite\.yaml:\d+: judge: a file cannot have prompts sent to another machine"):
        options(evaluate=asked(None), judge=far)
    for judge, arguments in {near: [], far: [f"--judge={far}"]}.items():
        for in_file in (near, None) if arguments else (near,):
            lines = plan(options("--key_variable=KEY", *arguments, evaluate=asked(in_file)))
            found = parsed(job(lines, "Base: judge").command)
            assert (found.judge, found.key_variable) == (judge, "KEY")


def test_what_is_typed_for_all_rows_allows_nothing_of_the_file(folder: Path) -> None:
    rows = [{"name": "A", "rollout": {"source": "student", "server": "http://a"}}]
    says = refused("--set.rollout.server=http://example.org", rows=rows)
    assert says.startswith("rows[1], A: --rollout.server: a file cannot have prompts sent to another machine")


def test_a_row_in_an_address_leads_nowhere_else(folder: Path) -> None:
    """A request to http://evil.example#@localhost:80 goes to evil.example."""
    rows = [{"name": "X", "model": "evil.example#"}]
    says = refused(rows=rows, evaluate={"instruct": {**INSTRUCT, "server": "http://{X}@localhost:80"}})
    assert says.startswith("evaluate.instruct: --server: ")


def test_a_broken_data_file_is_found(folder: Path) -> None:
    Path("torn.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instr')
    says = refused(evaluate={"instruct": {**INSTRUCT, "data": ["torn.jsonl"]}})
    assert says.startswith("torn.jsonl:2: ")


def test_a_plan_is_printed_and_loads_nothing(folder: Path) -> None:
    options()
    script = (
        "import sys; from stillhouse import cli; code = cli.main(['suite', 'suite.yaml', '--plan']); "
        "sys.exit(code or 10 * any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(stillhouse.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout.splitlines()
    jobs = [str(job) for line in plan(options()) for job in line.jobs]
    assert sorted(printed[1::2]) == sorted(jobs) and len(jobs) == 13
    assert printed[0] == "# SFT, seed 3"
    assert not Path("out").exists()


def test_recipes_of_the_world_are_those_of_the_rows(folder: Path) -> None:
    """What the toy suite says in short is what its runs are told."""
    recipe = plan(options())[3].trainings[3].recipe
    assert recipe.method["kd_weight"] == RECIPE["method"]["kd_weight"]
