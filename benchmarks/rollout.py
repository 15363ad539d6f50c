"""What an on-policy step costs beside its parts done apart: writing the same texts, and learning from them.

    python benchmarks/rollout.py --data DOLLY/train.jsonl --tokenizer GPT2_FOLDER [--json]

The whole step is the trainer's own: the data set's batch, the student's answers to its prompts in place of it, forward
of student and teacher, reverse KL, backward, clipping, AdamW. Apart are `respond` to the same prompts with the same
seeds, and the trainer's step on a data set of those texts. All three in turns in one process, process CPU time,
medians; the learning rate is next to nothing, so that every turn writes the same texts and both losses must agree.

`plain_generate_s` is `generate(do_sample=True)` of transformers on the same prompts, which notes no probabilities and
has one random stream for all rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.models import quiet_loading
from stillhouse.recipe import parse
from stillhouse.rollout import Sampling, respond
from stillhouse.training.arguments import training_arguments
from stillhouse.training.on_policy import OnPolicy
from stillhouse.training.preflight import tokenizers_of
from stillhouse.training.prepare import prepare
from stillhouse.training.trainer import DistillationTrainer

SIZES = {"student": (4, 256, 4), "teacher": (12, 768, 12)}  # layers, width, heads
BAR = 1.2
Batches = list[dict[str, Any]]


class Steps:
    """One batch of prompts, and every way to spend time on it."""

    def __init__(self, world: Path, args: argparse.Namespace) -> None:
        keys = {
            "student.model": world / "student", "teacher.model": world / "teacher", "data.train": args.data,
            "data.limit": args.batch_size, "data.max_length": args.max_length, "output": world / "out",
            "data.max_prompt_length": args.max_length - args.new_tokens, "training.max_steps": 1,
            "training.per_device_train_batch_size": args.batch_size, "training.use_cpu": True,
            "training.learning_rate": 1e-30, "training.weight_decay": 0.0, "method": "reverse_kl",
            "rollout.source": "student", "rollout.max_new_tokens": args.new_tokens, "rollout.show_every": 0,
        }  # fmt: skip
        recipe = parse("distill", [f"--{key}={value}" for key, value in keys.items()])
        made = prepare(recipe, world, tokenizers_of(recipe)[0], training_arguments(recipe))
        self.trainer: DistillationTrainer = made.trainer
        self.trainer.state.max_steps = self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.create_optimizer_and_scheduler(1)
        assert self.trainer.on_policy is not None
        self.on_policy: OnPolicy = self.trainer.on_policy
        self.items = [made.train[place] for place in range(len(made.train))]
        self.samples = [int(item["sample"]) for item in self.items]
        self.prompts = [self.on_policy.items.prompt(sample) for sample in self.samples]
        self.sampling = Sampling(args.new_tokens)
        rollouts = self.on_policy._written([self.samples], 0)[0]
        self.texts: Any = [self.on_policy.items.item(one) for one in rollouts]
        self.tokens = sum(len(one.response) for one in rollouts)

    def generate(self) -> None:
        """The texts alone."""
        owner = self.on_policy
        with torch.no_grad():
            respond(
                owner.distiller.student, owner.tokenizer, self.prompts, self.sampling, description=None,
                seed=[(owner.seed, 0, sample) for sample in self.samples], batch_size=owner.options["batch_size"],
                max_length=owner.max_length, stop=owner.stop,
            )  # fmt: skip

    def plain_generate(self) -> None:
        """As many tokens by transformers' own sampling."""
        student, tokenizer = self.on_policy.distiller.student, self.on_policy.tokenizer
        fed = tokenizer.pad({"input_ids": self.prompts}, padding_side="left", return_tensors="pt")
        config = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=self.sampling.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        student.eval()
        with torch.no_grad():
            student.generate(**fed, generation_config=config)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def step(self) -> float:
        """A whole on-policy step."""
        self.trainer.on_policy = self.on_policy
        return self._taken(self.items)

    def distill(self) -> float:
        """An off-policy step on the texts."""
        self.trainer.on_policy = None
        return self._taken(self.texts)

    def _taken(self, items: list[Any]) -> float:
        """What the Trainer's loop does between two steps; the loss of it."""
        trainer, optimizer = self.trainer, self.trainer.optimizer
        assert optimizer is not None and isinstance(trainer.model, nn.Module)
        device = torch.device(trainer.args.device)
        batches, count = trainer.get_batch_samples(self._loader(items), 1, device)
        loss: Tensor = trainer.training_step(trainer.model, batches[0], count)
        trainer._clip_grad_norm(trainer.model)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def _loader(self, items: list[Any]) -> Iterator[dict[str, Any]]:
        yield self.on_policy.collate(items)


def write_models(world: Path, tokenizer_folder: str) -> None:
    """A student and a teacher of GPT-2's architecture and the tokenizer's vocabulary, with random weights."""
    tokenizer = load_tokenizer(tokenizer_folder)
    for seed, (name, (layers, width, heads)) in enumerate(SIZES.items()):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_layer=layers, n_embd=width, n_head=heads, resid_pdrop=0, embd_pdrop=0,
            attn_pdrop=0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(world / name)
        tokenizer.save_pretrained(world / name)


def in_turns(ways: dict[str, Callable[[], float | None]], repeats: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of process CPU time of every way, and how far the losses of a turn were apart at most."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    apart = 0.0
    for turn in range(repeats + 1):
        losses = []
        for name, way in list(ways.items())[:: -1 if turn % 2 else 1]:  # so that none is always after the same
            start = time.process_time()
            loss = way()
            seconds = time.process_time() - start
            losses += [] if loss is None else [loss]
            if turn:  # the first one compiles and warms up
                taken[name].append(seconds)
        apart = max(apart, (max(losses) - min(losses)) / abs(losses[0]))
    return taken, apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/dolly/train.jsonl")
    parser.add_argument("--tokenizer", default="../shared/tokenizers/gpt2-base")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for needed in (args.data, args.tokenizer):
        if not Path(needed).exists():
            print(f"skipped: there is no {needed}")
            return
    torch.set_num_threads(args.threads)
    quiet_loading()
    with tempfile.TemporaryDirectory() as scratch:
        write_models(Path(scratch), args.tokenizer)
        steps = Steps(Path(scratch), args)
        ways: dict[str, Callable[[], float | None]] = {
            "generate": steps.generate, "distill": steps.distill, "step": steps.step,
            "plain_generate": steps.plain_generate,
        }  # fmt: skip
        taken, apart = in_turns(ways, args.repeats)
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    turns = zip(taken["step"], taken["generate"], taken["distill"], strict=True)
    ratio = statistics.median(step / (generate + distill) for step, generate, distill in turns)
    print(f"{args.batch_size} prompts, {steps.tokens} tokens written\n\n{'what':20} {'seconds':>8}")
    for name, seconds in median.items():
        print(f"{name:20} {seconds:8.3f}")
    print(f"\na step over its parts apart: {ratio:.3f}, at most {BAR}; losses apart by {apart:.1e} of themselves")
    if args.json:
        found = {f"{name}_s": round(seconds, 4) for name, seconds in median.items()}
        print(json.dumps({**found, "ratio": round(ratio, 4), "loss_rel_diff": apart}))


if __name__ == "__main__":
    main()
