import json
from random import Random

import pytest

from stillhouse import store
from stillhouse.demo import skills
from stillhouse.demo.vocabulary import END, LONGEST, PAD, Size, train_tokenizer, write_model_folder

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
