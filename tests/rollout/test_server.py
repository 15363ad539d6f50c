"""A server as an engine: over real HTTP against a small one, and against vLLM itself where there is one.

STILLHOUSE_VLLM=/path/to/vllm pytest tests/rollout/test_server.py
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stillhouse import cli
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.mistakes import LONGEST_LINE, Mistake
from stillhouse.patience import Patience
from stillhouse.rollout import Sampling, respond, server_of
from stillhouse.rollout.server import Server
from tests.rollout.serving import BROKEN_OFF, served
from tests.rollout.small import VOCABULARY, character_tokenizer, same, save_model, some_prompts


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    world = tmp_path_factory.mktemp("served")
    return [save_model(world / name, seed) for name, seed in (("first", 1), ("second", 2))]


def hasty(address: str, wait: float = 0.01) -> Server:
    """With little patience."""
    found = Server.at(address, batch_size=2, vocabulary=VOCABULARY)
    return replace(found, patience=Patience(retries=2, wait=wait, longest=wait))


def test_greedy_answers_are_the_models_own(folders):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders[0]), load_tokenizer(str(folders[0]))
    prompts, stop = some_prompts(16), [tokenizer.get_vocab()["b"]]
    greedy = Sampling(3, temperature=0)
    expected = respond(model, tokenizer, prompts, greedy, seed=1, stop=stop)
    with served(folders[0]) as serving:
        engine = server_of(serving.address + "/", str(folders[0]), 4)
        found = respond(engine, tokenizer, prompts, greedy, seed=1, stop=stop)
    same(found, expected)
    assert {one.finished for one in found} == {True, False}


def test_every_prompt_has_a_seed_of_its_own_and_draws_as_it_is_told(folders):
    tokenizer, prompts = load_tokenizer(str(folders[0])), [[5, 6]] * 6
    with served(folders[0]) as serving:
        engine = Server.at(serving.address, batch_size=3, vocabulary=VOCABULARY + 2)
        sampling = Sampling(7, temperature=0.5, top_p=0.9, top_k=3)
        first, again, other = (respond(engine, tokenizer, prompts, sampling, seed=seed) for seed in (1, 1, 2))
        bodies = [body for path, body in serving.asked if path == "/v1/completions"]
    assert [one.ids for one in first] == [one.ids for one in again] != [one.ids for one in other]
    assert len({body["seed"] for body in bodies}) == 12 and all(0 <= body["seed"] < 2**63 for body in bodies)
    assert {(body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) for body in bodies} == {
        (0.5, 0.9, 3, 7)
    }
    assert bodies[0]["logit_bias"] == {str(VOCABULARY): -100.0, str(VOCABULARY + 1): -100.0}, "no text, never drawn"
    assert bodies[0]["ignore_eos"] is True and bodies[0]["stop_token_ids"] == [0]
    assert all(math.isnan(log) for log in first[0].log_probability), "what it notes is of temperature 1"


def test_the_servers_room_counts(folders):
    tokenizer = load_tokenizer(str(folders[0]))
    with served(folders[0], max_model_len=12) as serving:
        engine = Server.at(serving.address, batch_size=2, vocabulary=VOCABULARY)
        found = respond(engine, tokenizer, [[5] * 10, [5] * 12], Sampling(9), seed=1)
        asked = [body["max_tokens"] for path, body in serving.asked if path == "/v1/completions"]
    assert asked == [2] and [one.clipped for one in found] == [True, True] and found[1].ids == ()


def test_generate_and_evaluate_ask_it(folders, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": text, "completion": "ab"}) + "\n" for text in ("a", "bb", "ba")))
    told = [f"--model={folders[0]}", "--template=plain", "--max_new_tokens=6", "--temperature=0"]
    with served(folders[0]) as serving:
        there = [*told, f"--server={serving.address}"]
        for arguments, out in ((told, "ours"), (there, "theirs")):
            assert cli.main(["generate", *arguments, f"--data={rows}", f"--out={tmp_path / out}.jsonl"]) == 0
            assert cli.main(["evaluate", *arguments, f"--data=[{rows}]", f"--out={tmp_path / out}"]) == 0
        assert len([path for path, _ in serving.asked if path == "/v1/completions"]) == 6
    assert (tmp_path / "ours.jsonl").read_bytes() == (tmp_path / "theirs.jsonl").read_bytes()
    ours, theirs = (json.loads((tmp_path / out / "scores.json").read_text()) for out in ("ours", "theirs"))
    assert ours["data"] == theirs["data"] and theirs["settings"].pop("server") == serving.address
    assert ours["settings"] == theirs["settings"]
    capsys.readouterr()
    assert cli.main(["evaluate", *told, f"--data=[{rows}]", f"--out={tmp_path / 'theirs'}"]) == 2
    assert "server" in capsys.readouterr().err, "its answers are not taken for the model's own"


def test_continuous_batching_writes_the_same_file(folders, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("a", "bb", "ba")))
    told = [f"--model={folders[0]}", "--template=plain", "--max_new_tokens=6", f"--data={rows}"]
    for engine in ("batches", "continuous"):
        assert cli.main(["generate", *told, f"--engine={engine}", f"--out={tmp_path / engine}.jsonl"]) == 0
    assert (tmp_path / "batches.jsonl").read_bytes() == (tmp_path / "continuous.jsonl").read_bytes()


def test_it_takes_new_weights(folders):
    tokenizer, prompts, greedy = load_tokenizer(str(folders[0])), some_prompts(5), Sampling(9, temperature=0)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
    expected = [respond(model, tokenizer, prompts, greedy, seed=1) for model in models]
    assert expected[0] != expected[1]
    with served(folders[0]) as serving:
        engine = Server.at(serving.address, batch_size=4, vocabulary=VOCABULARY)
        engine.take(folders[1])
        same(respond(engine, tokenizer, prompts, greedy, seed=1), expected[1])
        assert "/reset_prefix_cache" in [path for path, _ in serving.asked], "what it kept is of the weights before"


BAD = {
    "several": ({"/v1/models": (200, {"data": [{"id": "a"}, {"id": "b"}]})}, "serves 'a', 'b'; serve the model alone"),
    "no model": ({"/v1/models": (200, {"data": []})}, "serves nothing; serve the model alone"),
    "something else": ({"/v1/models": (200, ["data"])}, "does not say which models it serves; is it vLLM"),
    "no JSON": ({"/v1/models": (200, b"<html>")}, "does not answer: Expecting value"),
    "no ids": (
        {"/v1/completions": (200, {"choices": [{"text": "a"}]})},
        r"answers without token ids; is it vLLM, 0\.10\.2 or later\?",
    ),
    "refused": ({"/v1/completions": (400, {"error": {"message": "too long"}})}, "400 too long"),
    "broken": ({"/v1/completions": (500, b"")}, "500 "),
    "broken off": ({"/v1/completions": (503, BROKEN_OFF)}, "503 "),
    "busy": ({"/reset_prefix_cache": (200, {"success": False})}, "still answers somebody"),
    "unreadable": (
        {"/collective_rpc": (500, {"error": {"message": "no file"}})},
        "takes no weights: 500 no file; can it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_server_does_wrong_is_said(folders, case):
    odd, line = BAD[case]
    with served(folders[0]) as serving, pytest.raises(Mistake, match=rf"^server: {serving.address}: {line}"):  # noqa: PT012
        serving.odd = odd
        engine = hasty(serving.address)
        respond(engine, character_tokenizer(), [[1], [2]], Sampling(4), seed=1)
        engine.take(folders[1])


def card(name: str, root: str | None, **more: object) -> dict[str, object]:
    return {"id": name, "root": root, "max_model_len": 50, **more}


def test_the_model_that_is_asked_for_is_the_one_that_is_served(folders, tmp_path, monkeypatch):
    """By what the server calls it or what it has loaded, in whatever way a folder is written."""
    first, second = folders
    shutil.copytree(first, tmp_path / "run" / "epoch1_step3_loss1.0")
    (tmp_path / "run" / "recipe.yaml").write_text("{}")
    (tmp_path / "link").symlink_to(first)
    monkeypatch.chdir(first.parent)
    one, lora = card("Org/name", "Org/name"), card("tuned", str(second), parent="Org/name")
    renamed, best = card("mine", str(first)), card("b", str(tmp_path / "run" / "epoch1_step3_loss1.0"))
    far = card(str(first), "/far/away")
    cases: list[tuple[list[dict[str, object]], str, str]] = [
        ([one, lora], "Org/name", "Org/name"),
        ([one, renamed], str(first), "mine"),
        ([renamed], "first/", "mine"),
        ([renamed], str(tmp_path / "link"), "mine"),
        ([card("x", "first")], str(first), "x"),  # relative, as it was started
        ([one, best], str(tmp_path / "run"), "b"),
        ([card("run", None), best], str(tmp_path / "run"), "b"),
        ([far], str(first), str(first)),  # its own folder is not to be seen from here; it says that it is that model
        ([card("y", str(first)), renamed], "", "y"),  # two names of one model
        ([one], str(first), "serves 'Org/name', not"),
        ([{**one, "root": 3}], str(first), "serves 'Org/name', not"),
        ([card("z", "a\0b")], str(first), "serves 'z', not"),
        ([one], "Org/other", "serves 'Org/name', not 'Org/other'"),
        ([lora], str(second), "serves nothing, not"),
        ([far], str(tmp_path / "link"), "serves '.*' of '/far/away', not"),
        ([card(str(first), str(second))], str(first), "serves another model, '.*second'"),
    ]  # fmt: skip
    with served(first) as serving:
        for models, asked, expected in cases:
            serving.odd["/v1/models"] = 200, {"data": models}
            if expected.startswith("serves"):
                with pytest.raises(Mistake, match=expected) as caught:
                    asked_of(serving.address, asked)
                assert len(str(caught.value)) <= LONGEST_LINE
            else:
                found = asked_of(serving.address, asked)
                assert (found.name, found.room) == (expected, 50)
        serving.odd["/v1/models"] = 200, {"data": [card("x", None, max_model_len="many")]}
        assert asked_of(serving.address, "x").room is None


def asked_of(address: str, model: str) -> Server:
    """A Hub name is nothing that could be looked up here."""
    if Path(model).is_dir() and model:
        return server_of(address, model, 2)
    return Server.at(address, batch_size=2, vocabulary=0, names=(model,) if model else ())


PASSING = {"overloaded": (503, b""), "asks to wait": (429, b""), "cut": (0, b""), "broken": (200, b'{"choices": [')}


@pytest.mark.parametrize("failure", PASSING)
def test_what_may_pass_is_asked_again_and_nothing_else(folders, failure):
    tokenizer, prompts, greedy = load_tokenizer(str(folders[0])), some_prompts(4), Sampling(3, temperature=0)
    with served(folders[0]) as serving:
        engine = hasty(serving.address)
        expected = respond(engine, tokenizer, prompts, greedy, seed=1)
        serving.asked.clear()
        serving.first = {path: [PASSING[failure]] * 2 for path in ("/v1/completions", "/collective_rpc")}
        same(respond(engine, tokenizer, prompts, greedy, seed=1), expected)
        engine.take(folders[1])
        asked = [path for path, _ in serving.asked]
    assert (asked.count("/v1/completions"), asked.count("/collective_rpc")) == (4 + 2, 1 + 2)


def test_a_server_that_is_started_anew_is_waited_for(folders):
    tokenizer, prompts, greedy = load_tokenizer(str(folders[0])), some_prompts(4), Sampling(3, temperature=0)
    with served(folders[0]) as serving:
        engine = replace(hasty(serving.address), patience=Patience(retries=200, wait=0.05, longest=0.05))
        expected = respond(engine, tokenizer, prompts, greedy, seed=1)
    found = []
    asking = threading.Thread(target=lambda: found.extend(respond(engine, tokenizer, prompts, greedy, seed=1)))
    asking.start()
    time.sleep(0.1)
    with served(folders[0], port=int(engine.address.rpartition(":")[2])):
        asking.join()
    same(found, expected)


def test_what_does_not_pass_is_said_at_once_or_after_the_last_time(folders):
    tokenizer, one = character_tokenizer(), [[1]]
    with served(folders[0]) as serving:
        engine = hasty(serving.address)
        for status, requests in ((400, 1), (404, 1), (503, 3)):
            serving.odd["/v1/completions"] = status, {"error": {"message": "so it is"}}
            serving.asked.clear()
            with pytest.raises(Mistake, match=f"{status} so it is"):
                respond(engine, tokenizer, one, Sampling(4), seed=1)
            assert len(serving.asked) == requests
        serving.odd["/v1/models"] = 503, {}
        serving.asked.clear()
        with pytest.raises(Mistake, match="503"):
            hasty(serving.address)
        assert len(serving.asked) == 1, "a first look is quick"
        serving.first["/v1/completions"] = [(503, b"")]
        engine = replace(engine, patience=Patience(retries=2, wait=60.0, longest=60.0))
        serving.odd["/v1/completions"] = 400, {"error": {"message": "too long"}}
        began = time.monotonic()
        with pytest.raises(Mistake, match="400 too long"):
            respond(engine, tokenizer, [[1], [2]], Sampling(4), seed=1)
        assert time.monotonic() - began < 20.0, "one that waits to be asked again does not hold up the rest"


def test_a_connection_is_not_waited_for_as_an_answer_is(folders):
    """The backlog of a listener that takes nobody is full: connecting hangs, as it does behind a silent firewall."""
    with served(folders[0]) as serving:
        engine = hasty(serving.address)
    with socket.socket() as full, ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(8):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        deaf = replace(engine, address=f"http://127.0.0.1:{full.getsockname()[1]}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stillhouse.rollout.server.REACHED", 0.2)
            with pytest.raises(Mistake, match="does not answer: timed out"):
                respond(deaf, character_tokenizer(), [[1]], Sampling(4), seed=1)


def test_what_it_was_not_started_for_is_said(folders):
    with served(folders[0], takes=False) as serving:
        engine = Server.at(serving.address, batch_size=2, vocabulary=VOCABULARY)
        with pytest.raises(Mistake, match=r"takes no weights: 404 .*; start it with VLLM_SERVER_DEV_MODE=1"):
            engine.take(folders[1])
        with pytest.raises(Mistake, match="no_repeat_ngram_size: is not known to a server"):
            respond(engine, character_tokenizer(), [[1]], Sampling(4, no_repeat_ngram_size=2), seed=1)
        with pytest.raises(
            Mistake, match=r"serves 'served' of '.*first', not '.*second'; name that one, or serve yours"
        ):
            server_of(serving.address, str(folders[1]), 2)
        address = serving.address
    with pytest.raises(Mistake, match=r"does not answer: .*refused; is it started\? vllm serve MODEL"):
        Server.at(address, batch_size=2, vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Path]]]:
    """A vLLM server and the folders of two models, of which it serves the first."""
    program = os.environ.get("STILLHOUSE_VLLM")
    if not program:
        pytest.skip("STILLHOUSE_VLLM names no vllm program")
    world, folders = tmp_path_factory.mktemp("vllm"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=128, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        folders.append(world / str(seed))
        LlamaForCausalLM(config).save_pretrained(folders[-1])
        character_tokenizer().save_pretrained(folders[-1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        program, "serve", str(folders[0]), "--host=127.0.0.1", f"--port={port}", "--dtype=float32", "--enforce-eager",
        "--max-model-len=128", "--generation-config=vllm",
    ]  # fmt: skip
    own = {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = (world / "log").open("w")
    process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, start_new_session=True)
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 240
        while True:
            try:
                Server.at(address, batch_size=1, vocabulary=0)
                break
            except Mistake:
                assert process.poll() is None and time.monotonic() < until, (world / "log").read_text()[-2000:]
                time.sleep(1)
        yield address, folders
    finally:
        process.terminate()
        process.wait()
        log.close()


@pytest.mark.slow
def test_vllm_itself_writes_as_the_model_does_and_takes_new_weights(vllm):
    address, folders = vllm
    tokenizer, prompts, greedy = load_tokenizer(str(folders[0])), some_prompts(8), Sampling(12, temperature=0)
    engine = server_of(address, str(folders[0]), 4)
    for folder in (*folders, folders[0]):
        model = AutoModelForCausalLM.from_pretrained(folder)
        engine.take(folder)
        expected = respond(model, tokenizer, prompts, greedy, seed=1, stop=[7, 80, 81])
        found = respond(engine, tokenizer, prompts, greedy, seed=1, stop=[7, 80, 81])
        same(found, expected)
        drawn, again, others = (respond(engine, tokenizer, prompts, Sampling(12), seed=seed) for seed in (1, 1, 2))
        assert [one.ids for one in drawn] == [one.ids for one in again] != [one.ids for one in others]
        for prompt, said in zip(prompts, drawn, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *said.ids]])).logits[0, len(prompt) - 1 : -1]
            logs = torch.log_softmax(logits, -1).gather(-1, torch.tensor(said.ids)[:, None])[:, 0]
            assert said.log_probability == pytest.approx(logs.tolist(), abs=1e-3)
