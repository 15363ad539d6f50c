import json
from random import Random

import pytest

from stillhouse import store
from stillhouse.demo import skills
from stillhouse.demo.vocabulary import END, LONGEST, PAD, Size, train_tokenizer, train_unigram, write_model_folder

SIZE = Size(hidden=16, layers=2, intermediate=24)


@pytest.fixture(scope="module")
def texts():
    stream = skills.rows(Random(0), held_out=False)
    return [f"{row['instruction']}\n{row['output']}" for row, _ in zip(stream, range(2_000), strict=False)]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 600)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "student"
    write_model_folder(path, tokenizer, SIZE)
    return path


def test_it_has_the_entries_asked_for_and_comes_out_the_same_each_time(tokenizer, texts):
    assert tokenizer.get_vocab_size() == 600
    assert tokenizer.to_str() == train_tokenizer(texts, 600).to_str()


@pytest.mark.parametrize("text", ["How many words?", " two  spaces\n\ttab ", "ünïcödé 🦊 \x00", ""])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_it_makes_the_demos_text_much_shorter_than_its_bytes(tokenizer, texts):
    tokens = [len(tokenizer.encode(text).ids) for text in texts]
    assert sum(tokens) * 3 < sum(map(len, texts))
    assert max(tokens) + len("### Instruction:### Response:") < LONGEST


def test_the_folder_is_whole_and_loads_as_a_tokenizer_with_its_special_tokens(folder, tokenizer):
    from transformers import AutoTokenizer

    store.verify_folder(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == (END, PAD, None)
    assert (
        len(loaded) == 600 and loaded("What is 3 times 4?")["input_ids"] == tokenizer.encode("What is 3 times 4?").ids
    )
    assert loaded.decode(loaded("a , b .")["input_ids"]) == "a , b ."


def test_a_model_of_the_size_is_born_from_the_folder(folder, tokenizer):
    from stillhouse.models import load_causal_lm

    model = load_causal_lm(str(folder), from_scratch=True, seed=1)
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "eos_token_id", "pad_token_id")
    assert [getattr(model.config, name) for name in names] == [16, 2, 24, 600, *map(tokenizer.token_to_id, (END, PAD))]
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert json.loads((folder / "config.json").read_text())["bos_token_id"] is None


@pytest.fixture(scope="module")
def unigram(texts):
    return train_unigram(["### Instruction:\n\n### Response:\n", *texts], 460)


def test_the_other_vocabulary_is_of_another_family_and_comes_out_the_same_each_time(unigram, texts, tokenizer):
    again = train_unigram(["### Instruction:\n\n### Response:\n", *texts], 460)
    assert unigram.to_str() == again.to_str()
    assert 300 < unigram.get_vocab_size() <= 460
    theirs, ours = (set(made.get_vocab()) for made in (unigram, tokenizer))
    assert any(token.startswith("\u2581") for token in theirs) and not any(token.startswith("\u2581") for token in ours)


def test_the_other_vocabulary_knows_every_row_and_reads_it_in_room(unigram, texts):
    unknown = unigram.token_to_id("<|unknown|>")
    for text in texts:
        ids = unigram.encode(text).ids
        assert unknown not in ids and unigram.decode(ids) == text
        assert len(ids) + len("### Instruction:### Response:") < LONGEST


def test_pieces_of_the_other_vocabulary_are_recognised_and_shared_in_part(unigram, tokenizer, tmp_path):
    from stillhouse import vocabulary
    from stillhouse.data.pieces import Pieces
    from stillhouse.data.tokenizer import load_tokenizer

    sides = []
    for name, made in (("theirs", unigram), ("ours", tokenizer)):
        write_model_folder(tmp_path / name, made, SIZE)
        sides.append(Pieces.of(load_tokenizer(tmp_path / name)))
    assert [side.kind for side in sides] == ["sentencepiece", "byte_level"]
    theirs, ours = vocabulary.overlap(*sides)
    assert 0.3 < len(theirs) / unigram.get_vocab_size() < 0.9
    assert all(sides[0].content[a] == sides[1].content[b] for a, b in zip(theirs[:-1], ours[:-1], strict=True))
