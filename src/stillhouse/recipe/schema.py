"""What a recipe may say: typed sections with meanings, defaults and bounds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import ClassVar, Literal

from stillhouse.catalogue import ALIGNERS, METHODS, VOCABULARIES, Entry, correspondence, find, settle
from stillhouse.catalogue.sources import BY_OTHERS, rollout_of
from stillhouse.mistakes import Mistake, unknown_name
from stillhouse.model_folders import is_run
from stillhouse.recipe import lora, trainer_arguments
from stillhouse.recipe.address import check_address
from stillhouse.recipe.section import Bounds, Section, setting

Template = Literal["alpaca", "chat", "plain", "short"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_CHECKPOINT = re.compile(r"last|best|epoch\d+_step\d+.*")
ONE_OR_MORE, NOT_NEGATIVE = Bounds(low=1), Bounds(low=0)
PROBABILITY = Bounds(above=0, high=1)


@dataclass(frozen=True)
class _Model(Section):
    """What student and teacher have in common."""

    def validate(self) -> None:
        attention = getattr(self, "attn_implementation", None)
        if attention is not None and "/" not in attention and attention not in ATTENTIONS:
            raise unknown_name(self.key("attn_implementation"), "attention", attention, ATTENTIONS)


@dataclass(frozen=True)
class Student(_Model):
    """The model that learns."""

    section: ClassVar[str] = "student"

    model: str = setting("a model's folder, a run's (its best checkpoint) or a name on the Hub")
    tokenizer: str | None = setting("its tokenizer, where that is not in the model's folder", None)
    from_scratch: bool = setting("random weights, shaped by the config.json of `model`", False)
    config: dict = setting("changes to that config.json; only with from_scratch", {})
    lora: dict | None = setting(
        "an adapter is trained: peft.LoraConfig's own names; {}: r=256, lora_alpha=8, lora_dropout=0.1", None
    )
    quantize: Literal["4bit", "8bit"] | None = setting(
        "keep the weights below an adapter in fewer bits: 4bit or 8bit", None
    )
    frozen: bool = setting("it stays as it is; the method's projectors alone are trained", False)
    dropout: float | None = setting(
        "the rate of all its dropout, an adapter's apart; null: the model's own", None, Bounds(low=0, below=1)
    )
    dtype: Dtype = setting("what its weights are kept in", "float32")
    attn_implementation: str | None = setting("eager, sdpa, flash_attention_2 ...; null: transformers' choice", None)
    trust_remote_code: bool = setting("run Python code from the model's folder; command line only", False)

    def validate(self) -> None:
        super().validate()
        if self.config and not self.from_scratch:
            raise Mistake(
                "student.config", "would change a model whose weights are loaded", "add student.from_scratch: true"
            )
        if self.lora is not None:
            object.__setattr__(self, "lora", lora.settle(self.lora))
        if self.from_scratch and self.lora is not None:
            wrong = "would adapt random weights, which no checkpoint keeps"
            raise Mistake("student.lora", wrong, "remove it, or student.from_scratch")
        if self.from_scratch and self.quantize is not None:
            raise Mistake("student.quantize", "would freeze random weights", "remove it, or student.from_scratch")
        if self.frozen and self.from_scratch:
            raise Mistake("student.frozen", "would keep random weights", "remove it, or student.from_scratch")
        if self.frozen and self.lora is not None:
            raise Mistake("student.lora", "would add an adapter that never learns", "remove it, or student.frozen")


@dataclass(frozen=True)
class Teacher(_Model):
    """The model that is learnt from: frozen, in eval mode."""

    section: ClassVar[str] = "teacher"

    model: str = setting("a model's folder, a run's (its best checkpoint) or a name on the Hub")
    tokenizer: str | None = setting("its tokenizer, where that is not in the model's folder", None)
    template: Template | None = setting("how a row becomes its prompt; null: as data.template says", None)
    dtype: Dtype = setting("what its weights are kept in; auto: as they were saved", "auto")
    attn_implementation: str | None = setting("as for the student", None)
    window: int = setting("micro-batches of an optimizer step that it is asked at once", 1, ONE_OR_MORE)
    shard: Literal["none", "fsdp", "zero3"] = setting(
        "whole in every process, or cut over all of them: layers by FSDP2, or all by DeepSpeed", "none"
    )
    trust_remote_code: bool = setting("run Python code from the model's folder; command line only", False)


@dataclass(frozen=True)
class Data(Section):
    """Rows, and how they become token ids."""

    section: ClassVar[str] = "data"

    train: str = setting("training rows: .jsonl, .json, .parquet or a name on the Hub")
    eval: str | None = setting("rows scored after every epoch", None)
    corpus: str | None = setting("rows of {text} that a method with lm_coef (minillm) learns beside", None)
    train_split: str = setting("of a folder or a Hub data set in `train`", "train")
    eval_split: str = setting("of a folder or a Hub data set in `eval`", "validation")
    template: Template = setting("how a row becomes a prompt", "alpaca")
    max_length: int = setting("tokens of prompt and response", 512, Bounds(low=2))
    max_prompt_length: int = setting("tokens of the prompt", 256, ONE_OR_MORE)
    limit: int | None = setting("use the first so many training rows", None, ONE_OR_MORE)
    eval_limit: int | None = setting("use the first so many rows of `eval`", None, ONE_OR_MORE)
    cut: Literal["marker", "end"] = setting(
        "a long prompt loses text before its marker (### Response:), or, as in the papers' code, its end", "marker"
    )
    bos: bool | None = setting("begin with the BOS token; null: as the tokenizer does", None)
    scored: Literal["response", "all"] = setting(
        "the tokens that are learnt; all: prompts too, as TAID does", "response"
    )
    pad_to_max_length: bool = setting("pad every batch to max_length, as the papers' code does; slower", False)
    packing: bool = setting("lay the examples of a batch end to end in one row, without padding", False)
    max_batch_tokens: int | None = setting(
        "fill micro-batches up to so many tokens, padding included", None, ONE_OR_MORE
    )

    def validate(self) -> None:
        check_lengths(self, self.max_prompt_length, self.max_length)
        if self.packing and self.pad_to_max_length:
            raise Mistake("data.packing", "leaves no padding, but pad_to_max_length asks for it", "keep one of them")
        if self.max_batch_tokens is not None and self.max_batch_tokens < self.max_length:
            wrong = f"{self.max_batch_tokens} tokens have no room for an example of max_length, {self.max_length}"
            raise Mistake("data.max_batch_tokens", wrong, "raise it, or lower max_length")
        if self.max_batch_tokens is not None and self.pad_to_max_length:
            wrong = "fills batches by tokens, but pad_to_max_length makes all examples of one length"
            raise Mistake("data.max_batch_tokens", wrong, "keep one of them")
        if self.eval_limit is not None and self.eval is None:
            raise Mistake("data.eval_limit", "there are no rows to limit", "add data.eval")


def check_lengths(section: Section, prompt: int, whole: int) -> None:
    """Refuse a prompt that leaves no room for a response."""
    if prompt >= whole:
        wrong = f"must be below max_length, which is {whole}, got {prompt}"
        raise Mistake(section.key("max_prompt_length"), wrong, "leave room for the response")


@dataclass(frozen=True)
class HeadBlocks(Section):
    """How the work on the vocabulary is cut into blocks; null: the rule for the device."""

    section: ClassVar[str] = "head"

    rows: int | None = setting("predictions of one matrix product with the head", None, ONE_OR_MORE)
    elements: int | None = setting("logits of one piece of element-wise work", None, ONE_OR_MORE)
    vocabulary_tile: int | None = setting("rows of the head's gradient added to at a time", None, ONE_OR_MORE)
    kernel_from: int | None = setting("logits from which a CPU uses its own compiled kernel", None, ONE_OR_MORE)
    compile: bool | None = setting("run the element-wise work through torch.compile", None)

    def chosen(self) -> dict[str, int | bool]:
        """What is not left to the rule."""
        return {key: value for key, value in self.as_dict().items() if value is not None}


@dataclass(frozen=True)
class Evaluation(Section):
    """What happens after every epoch, where data.eval is given."""

    section: ClassVar[str] = "evaluation"

    generate: bool = setting("answer the prompts of data.eval and score ROUGE-L; false: dev loss only", True)
    max_new_tokens: int = setting("tokens of an answer", 256, ONE_OR_MORE)
    temperature: float = setting("of sampling; 0 is greedy", 1.0, NOT_NEGATIVE)
    top_p: float = setting("sample from the smallest set of tokens with this mass", 1.0, PROBABILITY)
    no_repeat_ngram_size: int = setting("no n-gram of this size twice; 0: off", 0, NOT_NEGATIVE)
    seeds: list[int] = setting("answer once per seed, and average", [10], NOT_NEGATIVE)
    batch_size: int = setting("prompts answered at a time", 16, ONE_OR_MORE)
    keep_best: int = setting("checkpoints kept: the best by ROUGE-L, or by dev loss", 1, ONE_OR_MORE)

    def validate(self) -> None:
        check_seeds(self, self.seeds)


def check_seeds(section: Section, seeds: list[int]) -> None:
    """Refuse none, and one that is there twice."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise Mistake(section.key("seeds"), f"must be different numbers, at least one, got {seeds}")


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """One training run: who learns, from whom, on what, how, and where the result goes."""

    student: Student = setting("the model that learns")
    teacher: Teacher | None = setting("the model that is learnt from; not for sft", None)
    data: Data = setting("rows, and how they become token ids")
    method: dict = setting("name and settings, see `stillhouse methods`", {"name": "sft"})
    alignment: dict | None = setting("which positions of two tokenizers correspond: name and settings", None)
    vocabulary: dict | None = setting("which tokens of two tokenizers correspond: name and settings", None)
    rollout: dict | None = setting(
        "who writes the responses: dataset, teacher, student, mixed, adaptive, paired; null: as the method has it", None
    )
    head: HeadBlocks = setting("how the work on the vocabulary is cut into blocks", HeadBlocks())
    training: dict = setting("transformers.TrainingArguments' own names", {})
    evaluation: Evaluation = setting("after every epoch, where data.eval is given", Evaluation())
    name: str | None = setting("the run's name; null: the recipe file's", None)
    output: str = setting("the folder that all runs go into", "outputs")
    seed: int = setting("of everything random", 10, Bounds(low=0, high=2**32 - 1))
    overwrite: bool = setting("begin anew in the folder of a finished run", False)

    def validate(self) -> None:
        method = self.entry
        settings = {key: value for key, value in self.method.items() if key != "name"}
        object.__setattr__(self, "method", {"name": method.name, **settle(method, settings, "method", schedules=True)})
        for axis, table in (("alignment", ALIGNERS), ("vocabulary", VOCABULARIES)):
            if getattr(self, axis) is not None and not method.needs_teacher:
                raise Mistake(axis, f"is not asked by {method.name}, which learns from text alone", "remove it")
            if getattr(self, axis) is not None:
                object.__setattr__(self, axis, correspondence.settled(axis, table, getattr(self, axis), method))
        if self.rollout is not None or method.rollout is not None:
            object.__setattr__(self, "rollout", rollout_of(method, self.rollout, self.method))
        if method.needs_teacher:
            correspondence.check(method, self.alignment, self.vocabulary, self.method)
        object.__setattr__(self, "training", trainer_arguments.settle(self.training))
        self._check_rollout()
        if method.needs_teacher and self.teacher is None:
            wrong = f"is missing; {method.name} learns from a teacher"
            raise Mistake("teacher.model", wrong, "add teacher: {model: ...}")
        if self.teacher is not None and not method.needs_teacher and self.source != "teacher":
            wrong = f"is not asked by {method.name}, which learns from text alone"
            raise Mistake("teacher", wrong, "remove it, or take another method")
        if self.student.frozen and not method.has_projectors:
            wrong = f"leaves nothing that learns: {method.name} has no projectors"
            raise Mistake("student.frozen", wrong, "remove it, or take a method that has, such as dskd")
        if self.data.corpus is not None and "lm_coef" not in self.method:
            raise Mistake("data.corpus", f"is not learnt by {method.name}", "remove it, or take minillm")
        for key in ("lm_coef", "lm_kd") if self.data.corpus is None else ():
            if key in self.method and self.method[key] != method.parameters[key].default:
                raise Mistake(f"method.{key}", "is of data.corpus, which is not there", "remove it, or add data.corpus")
        if self.data.max_batch_tokens is not None and "train_sampling_strategy" in self.training:
            wrong = "says which examples share a batch, and so does data.max_batch_tokens"
            raise Mistake("training.train_sampling_strategy", wrong, "keep one of them")
        for key, part in (("name", self.run_name), ("student.model", self.student_name)):
            if not re.fullmatch(r"[^/\\\0]*[^/\\\0.][^/\\\0]*", part):
                raise Mistake(key, f"'{part}' cannot name a folder", "write a plain name")

    def _check_rollout(self) -> None:
        """What else a source of responses asks of the recipe, or cannot go together with."""
        source, options = self.source, self.rollout or {}
        self._check_engine(options)
        if source == "teacher" and self.teacher is None:
            raise Mistake("rollout.source", "there is no teacher to write", "add teacher: {model: ...}")
        if source == "teacher" and self.teacher is not None and self.teacher.shard != "none":
            wrong = f"is {self.teacher.shard}, but a teacher that writes is whole in every process"
            raise Mistake("teacher.shard", wrong, "write none, or answer before: stillhouse generate")
        if not self.on_policy:
            return
        if self.data.scored == "all":
            wrong = "makes prompts into responses, and the student would have nothing to answer"
            raise Mistake("data.scored", wrong, "write response, or rollout.source: dataset")
        if self.data.max_batch_tokens is not None:
            wrong = "counts the data set's responses, but the student writes its own"
            raise Mistake("data.max_batch_tokens", wrong, "write training.per_device_train_batch_size")
        if self.training["parity"]:
            raise Mistake("training.parity", "repeats a loop on the data set alone", "write rollout.source: dataset")
        if source == "adaptive" and self.data.eval is None:
            raise Mistake("data.eval", "is missing; rollout.source: adaptive goes by the dev loss", "name dev rows")
        if options.get("teacher_mix", 0.0) and self.teacher is None:
            raise Mistake("rollout.teacher_mix", "there is no teacher to mix in", "remove it")
        if options.get("written", "none") != "none" and options["server"] != "none":
            raise Mistake("rollout.server", "has nothing to write; rollout.written is there", "keep one of them")
        if self.entry.whole_draws:
            self._check_draws(options)
        window, batch = options.get("window", 0), self._step_batch
        if window % batch:
            wrong = f"{window} is no multiple of the {batch} examples of an optimizer step"
            raise Mistake("rollout.window", wrong, f"write {batch * (window // batch + 1)}")

    @property
    def _step_batch(self) -> int:
        """Examples that a process takes in an optimizer step."""
        return self.training["per_device_train_batch_size"] * self.training["gradient_accumulation_steps"]

    def _check_engine(self, options: dict) -> None:
        """What an engine cannot do that shall write."""
        server, mixed = options.get("server", "none"), options.get("teacher_mix", 0.0)
        if options.get("engine", "batches") != "batches" and mixed:
            wrong = "reads along with batches alone"
            raise Mistake("rollout.teacher_mix", wrong, "write 0, or rollout.engine: batches")
        if server == "none":
            return
        check_address("rollout.server", server)
        if options["engine"] != "batches":
            raise Mistake("rollout.engine", "is of a model in this process", "remove it, or rollout.server")
        if mixed:
            raise Mistake("rollout.teacher_mix", "needs both models here, and a server writes", "write 0")
        if self.on_policy and self.student.lora is not None:
            raise Mistake("student.lora", "has weights that a server cannot take", "remove it, or rollout.server")
        if self.on_policy and self.entry.whole_draws and options["temperature"] != 1.0:
            wrong = "must be 1: a server notes probabilities at no other temperature"
            raise Mistake("rollout.temperature", wrong, "write 1, or remove rollout.server")

    def _check_draws(self, options: dict) -> None:
        """What a token is worth that was drawn at one temperature cannot be learnt at another, nor from a part."""
        drawn, learnt = options["temperature"], self.method["temperature"]
        if drawn != learnt:
            wrong = f"is {drawn:g}, but {self.entry.name} learns at temperature {learnt:g}"
            raise Mistake("rollout.temperature", wrong, "make both one")
        for key, all_of_it in (("top_p", 1.0), ("top_k", 0)):
            if options[key] != all_of_it:
                wrong = f"cuts what is drawn from, and {self.entry.name} learns from all of it"
                raise Mistake(f"rollout.{key}", wrong, f"write {all_of_it:g}")

    @property
    def entry(self) -> Entry:
        """The catalogue's entry of the method."""
        if "name" not in self.method:
            raise Mistake("method.name", "is missing", "name one, such as todi; `stillhouse methods` lists them")
        return find("method", METHODS, self.method["name"], "method.name")

    @property
    def source(self) -> str:
        """Who writes the responses."""
        return "dataset" if self.rollout is None else self.rollout["source"]

    @property
    def on_policy(self) -> bool:
        """Whether the student has a part in that."""
        return self.source not in BY_OTHERS

    @property
    def two_sided(self) -> bool:
        """Whether two tokenisations are asked for, be they equal."""
        own = self.teacher is not None and (self.teacher.template is not None or self.teacher.tokenizer is not None)
        return self.entry.two_sided or own or self.alignment is not None or self.vocabulary is not None

    @property
    def student_name(self) -> str:
        """The student as its runs' folders call it; for a run or a checkpoint of one, that run's student."""
        path = PurePath(self.student.model)
        parts = path.parts
        if len(parts) >= 3 and is_run(self.student.model):
            return parts[-3]
        return parts[-4] if len(parts) >= 4 and _CHECKPOINT.fullmatch(path.name) else path.name

    @property
    def run_name(self) -> str:
        """The name of the run's folder."""
        return "run" if self.name is None else self.name

    @property
    def folder(self) -> Path:
        """Where everything that the run writes goes: output/student/method/name."""
        return Path(self.output) / self.student_name / self.method["name"] / self.run_name
