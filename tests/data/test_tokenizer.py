from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from stillhouse.data.tokenizer import leading_ids, load_tokenizer, pad_id, same_vocabulary
from stillhouse.mistakes import LONGEST_LINE, Mistake
from tests.data.small import byte_level, metaspace

SIZE = len(byte_level())


def said(path: Path | str) -> str:
    with pytest.raises(Mistake) as caught:
        load_tokenizer(path)
    assert len(str(caught.value)) <= LONGEST_LINE
    return str(caught.value)


def test_a_loaded_tokenizer_pads_right_with_its_end_and_has_no_new_token(tmp_path: Path):
    metaspace().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("</s>", "right")
    assert pad_id(tokenizer) == 2
    assert len(tokenizer) == len(metaspace())
    assert pad_id(metaspace()) == 2  # without a padding token, its end


def test_a_padding_token_of_its_own_stays(tmp_path: Path):
    tokenizer = metaspace()
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(tmp_path)
    assert pad_id(load_tokenizer(tmp_path)) == tokenizer.convert_tokens_to_ids("<unk>")


def test_what_cannot_be_loaded_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("models/teacher")
    folder.mkdir(parents=True)
    needed = "no tokenizer files in this folder; it needs tokenizer.json, tokenizer.model or vocab.json"
    assert said(folder) == f"models/teacher: {needed}"
    assert said("models/teachr") == "models/teachr: no such file or folder; did you mean 'teacher'?"
    Path("models/file").write_text("")
    assert said("models/file") == "models/file: is a file; give the folder that holds the tokenizer"
    (folder / "tokenizer.json").write_text('{"model": ')
    assert said(folder).startswith("models/teacher: no tokenizer loads from here: ")
    assert said("nobody/nothing").startswith("nobody/nothing: no tokenizer loads from here: ")  # the suite is offline


def test_a_tokenizer_without_an_end_is_a_mistake(tmp_path: Path):
    byte_level().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: value for key, value in settings.items() if key not in ("eos_token", "pad_token")})
    )
    assert said(tmp_path).endswith("no end-of-text token; set eos_token in its tokenizer_config.json")


def test_what_a_tokenizer_puts_in_front():
    assert leading_ids(byte_level()) == []
    assert leading_ids(metaspace()) == [1]


def test_a_copy_has_the_same_vocabulary(tmp_path: Path):
    metaspace().save_pretrained(tmp_path)
    assert same_vocabulary(metaspace(), load_tokenizer(tmp_path)) is None  # though only one has a padding token


def with_token(tokenizer: PreTrainedTokenizerFast, token: str) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens([token])
    return tokenizer


def ending_with(tokenizer: PreTrainedTokenizerFast, token: str) -> PreTrainedTokenizerFast:
    tokenizer.eos_token = token
    return tokenizer


def without_front() -> PreTrainedTokenizerFast:
    tokenizer = metaspace()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


def merged_otherwise() -> PreTrainedTokenizerFast:
    tokenizer = byte_level()
    model = json.loads(tokenizer.backend_tokenizer.to_str())
    model["model"]["merges"] = model["model"]["merges"][:-40]
    return PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(model)), eos_token="<|endoftext|>"
    )


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (byte_level(), with_token(byte_level(), "<x>"), f"{SIZE} tokens here and {SIZE + 1} there"),
        (
            with_token(byte_level(), "<y>"),
            with_token(byte_level(), "<x>"),
            f"token {SIZE} is '<y>' here and '<x>' there",
        ),
        (metaspace(), without_front(), "a text begins with '<s>' here and '' there"),
        (byte_level(), merged_otherwise(), "is split differently"),
    ],
)
def test_why_vocabularies_differ(a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast, reason: str):
    found = same_vocabulary(a, b)
    assert found is not None
    assert reason in found
    assert same_vocabulary(b, a) is not None


def test_a_base_model_and_its_chat_version_share_their_ids():
    assert same_vocabulary(byte_level(), ending_with(byte_level(), "<|im_end|>")) is None
