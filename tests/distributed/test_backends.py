"""DDP, FSDP2 and DeepSpeed's ZeRO on two CPU processes over gloo: what else than `test_every_method` asks of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from stillhouse.catalogue import METHODS
from stillhouse.mistakes import Mistake
from stillhouse.recipe import Recipe, parse
from stillhouse.training import run
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.distributed.ranks import on_ranks

pytestmark = pytest.mark.slow
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, 24 rows and 5 to measure by."""
    return toy.write_world(tmp_path_factory.mktemp("world"), dev=5)


FROM_ROWS = "--rollout.source=dataset"


def recipe(world: Path, output: Path, method: str, *options: str) -> Recipe:
    # AdamW divides by the gradient's size: with its usual epsilon the rounding of a zero would become a step.
    training = {"learning_rate": 1e-2, "max_steps": 3, "logging_steps": 1, "adam_epsilon": 1e-4}
    tree: dict[str, Any] = {
        "student": {"model": str(world / "small")},
        "data": {"train": str(world / "train.jsonl"), "template": "short", "max_length": 96, "max_prompt_length": 64},
        "method": {"name": method, **soon(method)},
        "training": training,
        "output": str(output),
    }
    if METHODS[method].needs_teacher:
        tree["teacher"] = {"model": str(world / ("foreign" if METHODS[method].two_sided else "large"))}
    output.mkdir(parents=True, exist_ok=True)
    path = output / "recipe.yaml"
    path.write_text(json.dumps(tree))
    kept = [option for option in options if "teacher" in tree or not option.startswith("--teacher")]
    writes = [] if FROM_ROWS in options else toy.rollout(method)
    return parse("sft" if method == "sft" else "distill", [str(path), *writes, *kept])


def soon(method: str) -> dict[str, int]:
    """What makes that change within three steps which a method changes every so many."""
    return {"update_interval": 2} if "update_interval" in METHODS[method].parameters else {}


def split(size: int, accumulated: int) -> list[str]:
    return [f"--training.per_device_train_batch_size={size}", f"--training.gradient_accumulation_steps={accumulated}"]


def weights(folder: Path) -> Weights:
    """Everything that was learnt, the method's own included."""
    state = folder / "last" / "method.safetensors"
    (student,) = (folder / "last").glob("*model.safetensors")  # or adapter_model.safetensors
    return load_file(student) | (load_file(state) if state.exists() else {})


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def same(ours: Path, theirs: Path) -> None:
    ours_learnt, theirs_learnt = weights(ours), weights(theirs)
    assert ours_learnt.keys() == theirs_learnt.keys()
    for name, value in ours_learnt.items():
        torch.testing.assert_close(
            value, theirs_learnt[name], rtol=0, atol=1e-6, msg=lambda said, at=name: f"{at}: {said}"
        )
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-6)


class Backend:
    """What makes a Trainer of two CPU processes use a backend, and what shows that it did."""

    def __init__(self, options: list[str], prepare: Callable[[], None], shows: Callable[[DistillationTrainer], bool]):
        self.options, self.prepare, self.shows = options, prepare, shows

    def run_all(self, recipes: list[Recipe], **environment: Any) -> list[Path]:
        """Every recipe in two processes of an environment; all must have used the backend at every step."""

        def work() -> list[tuple[Path, bool]]:
            self.prepare()
            done = []
            for made in recipes:
                with watched(self.shows) as seen:
                    done.append((run(made), bool(seen) and all(seen)))
            return done

        first, second = on_ranks(work, **environment)
        assert first == second and all(used for _, used in first)
        return [folder for folder, _ in first]


class watched:  # noqa: N801 - a context manager
    """Ask `shows` of the trainer at every step."""

    def __init__(self, shows: Callable[[DistillationTrainer], bool]) -> None:
        self.shows, self.seen, self.step = shows, [], DistillationTrainer.training_step

    def __enter__(self) -> list[bool]:
        def noted(trainer: DistillationTrainer, *given: Any, **named: Any) -> Tensor:
            self.seen.append(self.shows(trainer))
            return self.step(trainer, *given, **named)

        DistillationTrainer.training_step = noted
        return self.seen

    def __exit__(self, *_: object) -> None:
        DistillationTrainer.training_step = self.step


def pretend_gpus() -> None:
    """Accelerate goes from a group to FSDP only where it believes in several GPUs; here they are CPU processes."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    create = DistillationTrainer.create_accelerator_and_postprocess

    def patched(trainer: DistillationTrainer) -> None:
        _ = trainer.args.device
        PartialState().distributed_type = DistributedType.MULTI_GPU
        create(trainer)

    DistillationTrainer.create_accelerator_and_postprocess = patched


def quiet_deepspeed() -> None:
    """No warnings of DeepSpeed's own, and no C++ extension: compiling one takes minutes, and gloo does without."""
    warnings.simplefilter("ignore")
    ops: Any = import_module("deepspeed.ops")
    ops.__compatible_ops__ = dict.fromkeys(import_module("deepspeed.ops.op_builder.all_ops").ALL_OPS, False)


def zero(stage: int, folder: Path) -> Backend:
    sharding = {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    config = {
        "zero_optimization": {"stage": stage, **(sharding if stage == 3 else {})},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps(config))

    def shows(trainer: DistillationTrainer) -> bool:
        engine = trainer.model_wrapped
        return type(engine).__name__ == "DeepSpeedEngine" and engine.zero_optimization_stage() == stage

    return Backend([f"--training.deepspeed={path}"], quiet_deepspeed, shows)


DDP = Backend([], lambda: None, lambda trainer: type(trainer.model_wrapped).__name__ == "DistributedDataParallel")
FSDP = Backend(
    [
        "--training.fsdp=full_shard",
        "--training.fsdp_config={version: 2, transformer_layer_cls_to_wrap: [LlamaDecoderLayer], "
        "state_dict_type: FULL_STATE_DICT}",
        "--training.ddp_backend=gloo",
    ],
    pretend_gpus,
    lambda trainer: all(isinstance(parameter, DTensor) for parameter in trainer.distiller.parameters()),
)


WHOLE, AHEAD = split(8, 1), "--teacher.window=3"


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_zero(world: Path, tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    backend = zero(stage, tmp_path)
    alone = [run(recipe(world, tmp_path / "alone" / method, method, *WHOLE)) for method in ("taid", "ctkd")]
    options = [*split(2, 2), AHEAD, *backend.options]
    made = [recipe(world, tmp_path / "zero" / method, method, *options) for method in ("taid", "ctkd")]
    spread = backend.run_all(made)
    for ours, theirs in zip(spread, alone, strict=True):
        same(ours, theirs)


class Killed(BaseException):
    """What ends a run without any cleaning up."""


@pytest.mark.parametrize(
    ("backend", "more"),
    [
        (DDP, []),
        (FSDP, []),
        (FSDP, ["--student.lora.r=4", "--student.lora.lora_dropout=0.1"]),
        (DDP, ["--data.max_batch_tokens=160", "--data.packing=true", "--training.save_steps=1"]),
    ],
    ids=["ddp", "fsdp2", "fsdp2 and lora", "ddp and a budget, within an epoch"],
)
def test_two_killed_processes_go_on_to_the_same_weights(
    world: Path, tmp_path: Path, backend: Backend, more: list[str]
) -> None:
    options = ["--training.max_steps=-1", "--training.num_train_epochs=2", *split(4, 1), *backend.options]
    options += [f"--data.eval={world / 'dev.jsonl'}", "--evaluation.generate=false", *more]
    whole, cut = (recipe(world, tmp_path / name, "taid", *options) for name in ("whole", "cut"))

    def killed_in_the_second_epoch() -> bool:
        backend.prepare()
        step, calls = DistillationTrainer.training_step, iter(range(100))

        def killing(*given: Any, **named: Any) -> Tensor:
            if next(calls) == 4:
                raise Killed
            return step(*given, **named)

        DistillationTrainer.training_step = killing
        try:
            run(cut)
        except Killed:
            return True
        return False

    assert on_ranks(killed_in_the_second_epoch) == [True, True]
    again, uninterrupted = backend.run_all([cut, whole])
    assert "going on from" in (again / "train.log").read_text()
    ours, theirs = weights(again), weights(uninterrupted)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(again) == losses(uninterrupted)


def test_two_processes_share_the_batches_of_a_budget(world: Path, tmp_path: Path) -> None:
    options = ["--data.max_batch_tokens=160", "--data.packing=true", "--training.gradient_accumulation_steps"]
    alone = run(recipe(world, tmp_path / "alone", "todi", *options[:2], f"{options[2]}=2"))
    (both,) = DDP.run_all([recipe(world, tmp_path / "both", "todi", *options[:2], f"{options[2]}=1")])
    same(both, alone)


def test_processes_that_would_each_train_alone_are_refused(world: Path, tmp_path: Path) -> None:
    """Without `use_cpu` accelerate forms no group on a machine without a GPU, and says nothing."""
    made = recipe(world, tmp_path, "seqkd", *split(4, 1), "--training.use_cpu=false")

    def lonely() -> str:
        try:
            run(made)
        except Mistake as mistake:
            return str(mistake)
        return "trained"

    for said in on_ranks(lonely):
        assert said.startswith("2 processes were started, but each sees 1")


def test_shards_that_would_be_none_are_refused(world: Path, tmp_path: Path) -> None:
    """Without a GPU accelerate trains whole copies where FSDP is asked for, and says nothing."""
    made = recipe(world, tmp_path, "seqkd", *split(4, 1), *FSDP.options)

    def whole() -> str:
        with pytest.raises(Mistake) as raised:
            run(made)
        return str(raised.value)

    for said in on_ranks(whole):
        assert said.startswith("training.fsdp: FSDP was asked for, but accelerate uses MULTI_CPU on this machine")


def test_a_student_in_shards_that_should_write_is_refused(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, "minillm", *split(4, 1), *FSDP.options)

    def refused() -> str:
        pretend_gpus()
        with pytest.raises(Mistake) as raised:
            run(made)
        return str(raised.value)

    for said in on_ranks(refused):
        assert said.startswith("rollout.source: a student in shards (FSDP) does not write while it trains")


def test_answers_in_training_are_refused_for_shards(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, "seqkd", *FSDP.options, f"--data.eval={world / 'dev.jsonl'}")

    def refused() -> str:
        FSDP.prepare()
        with pytest.raises(Mistake) as raised:
            run(made)
        return str(raised.value)

    for said in on_ranks(refused):
        assert said.startswith("evaluation.generate: a student in shards (FSDP) does not write answers while it trains")
