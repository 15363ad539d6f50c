"""What `evaluate code` may be asked: typed options with meanings, defaults and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.mistakes import Mistake
from stillhouse.recipe.data_sets import data_name
from stillhouse.recipe.evaluating import OfModel
from stillhouse.recipe.schema import NOT_NEGATIVE, ONE_OR_MORE, PROBABILITY, check_seeds
from stillhouse.recipe.section import Bounds, setting


@dataclass(frozen=True, kw_only=True)
class CodeOptions(OfModel):
    """Programming problems to write programs for, and whether those are run."""

    data: list[str] = setting("problems of HumanEval's or MBPP's fields: .jsonl, .json, .parquet or a folder of them")
    out: str | None = setting(
        "the folder whose code/ gets the results; null: evaluation/ in the model's or run's folder", None
    )
    run_generated_code: bool = setting("run what the model wrote, in a sandbox; command line only", False)
    sandbox: Literal["auto", "namespaces", "bubblewrap", "none"] = setting(
        "what the programs run in; auto: the strictest that works; none, which leaves them free: command line only",
        "auto",
    )
    scorer: Literal["tests", "evalplus"] = setting(
        "the data's own tests; or EvalPlus's command, with its data, inside the sandbox", "tests"
    )
    evalplus: str | None = setting("the folder that EvalPlus is installed in; null: where this Python finds it", None)
    prompt: Literal["completion", "chat"] = setting(
        "a base model goes on writing; a chat model is asked by the tokenizer's template", "completion"
    )
    shots: int = setting("problems of MBPP shown in every prompt and not asked; its paper shows 3", 0, NOT_NEGATIVE)
    limit: int | None = setting("use the first so many problems", None, ONE_OR_MORE)
    samples: int = setting("programs for each problem and seed", 1, ONE_OR_MORE)
    k: list[int] = setting("pass@k for each of these", [1], ONE_OR_MORE)
    seeds: list[int] = setting("write once per seed; mean and deviation are over them", [10], NOT_NEGATIVE)
    max_length: int = setting("tokens of prompt and program", 2048, Bounds(low=2))
    max_new_tokens: int = setting("tokens of a program", 512, ONE_OR_MORE)
    temperature: float = setting("of sampling; 0 is greedy", 0.0, NOT_NEGATIVE)
    top_p: float = setting("sample from the smallest set of tokens with this mass", 1.0, PROBABILITY)
    batch_size: int = setting("programs written at a time", 32, ONE_OR_MORE)
    time_limit: float = setting("seconds for a program and its tests: of the clock, and of processor time", 10.0,
                                Bounds(above=0))  # fmt: skip
    memory_limit: int = setting("MiB of address space for a program", 1024, Bounds(low=128))
    workers: int | None = setting("programs run at a time; null: one for each processor", None, ONE_OR_MORE)

    def validate(self) -> None:
        check_seeds(self, self.seeds)
        if not self.data:
            raise Mistake("data", "names no file", "write data: [humaneval/test.jsonl]")
        if not self.k or max(self.k) > self.samples:
            wrong = f"pass@{max(self.k)} needs as many samples, got {self.samples}" if self.k else "names no number"
            raise Mistake("k", wrong, f"give --samples={max(self.k)}" if self.k else "write k: [1]")
        if self.temperature == 0 and self.samples > 1:
            raise Mistake("samples", f"{self.samples} greedy programs are one", "give --temperature=0.8, or one sample")
        if self.sandbox == "none" and not self.run_generated_code:
            raise Mistake("sandbox", "none is chosen, and nothing is to run", "add --run-generated-code, or remove it")

    @property
    def sources(self) -> dict[str, str]:
        """The files of problems, by the names that their scores go by.

        Raises:
            Mistake: two have one name.
        """
        found: dict[str, str] = {}
        for path in self.data:
            name = data_name(path)
            if name in found:
                wrong = f"is called '{name}' as {found[name]} is"
                raise Mistake(path, wrong, "evaluate them apart, each with its own --out")
            found[name] = path
        return found
