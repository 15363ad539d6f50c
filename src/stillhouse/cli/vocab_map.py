"""`stillhouse vocab-map`."""

from __future__ import annotations

from stillhouse.recipe import VocabMapOptions

SUMMARY = "map a teacher's tokens to a student's: the same text, the nearest string, or its beginning"
EXAMPLE = "min-edit --teacher=Qwen/Qwen1.5-1.8B --student=gpt2 --out=qwen-to-gpt2.json"


def run(options: VocabMapOptions) -> None:
    """Make the map, write it, and say how many tokens found theirs."""
    from stillhouse import vocabulary
    from stillhouse.data.tokenizer import load_tokenizer

    teacher, student = (
        load_tokenizer(name, trust_remote_code=options.trust_remote_code) for name in (options.teacher, options.student)
    )
    made = vocabulary.build(options.kind, teacher, student, ignore_space=options.ignore_space)
    made.save(options.out)
    print(f"{options.out}: {made.kind}, {len(made.ids)} teacher tokens to {made.student_size} student tokens")
    print(", ".join(f"{count} {way}" for way, count in made.counts.items()))
    print("{:.1%} of the teacher's tokens have one, {:.1%} of the student's are reached".format(*made.coverage))
