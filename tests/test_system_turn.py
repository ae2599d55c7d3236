"""``prompt.system``: a system turn before each request to a chat model."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
from fake_openai import FakeServer
from identities import run_of, write_files
from students import save_gpt2
from teachers import RULE, plan, problems
from transformers import AutoTokenizer

from fcot.base.errors import FcotError
from fcot.decoding.encoding import encoder_of
from fcot.llm.hf import HFModel
from fcot.llm.openai import OpenAIModel
from fcot.llm.requests import Request
from fcot.llm.server import Server
from fcot.llm.store.folder import StoreFolder
from fcot.llm.throttle import Throttle
from fcot.methods.tailored.feedback import feedback_prompt
from fcot.prompts.teacher import TeacherPrompt
from fcot.stages.remote_evaluation import evaluation_plan

SYSTEM = "You are a patient tutor."
TURN = {"role": "system", "content": SYSTEM}
TRIGGERS = {"number": "Therefore, the answer is"}
SERVER = ("teacher=openai", "teacher.model=m", "teacher.base_url=http://127.0.0.1:9/v1", "teacher.api_key_env=none")


def prompt(system):
    return TeacherPrompt("p", "Q: {question}\nA: Let's think step by step.", TRIGGERS, answer_tokens=16, system=system)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("system"))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_each_chat_request_begins_with_the_system_turn():
    first, second = prompt(SYSTEM).first_request("Why?", RULE, True), prompt(SYSTEM).second_request("Why?", "So.", RULE, True)
    assert [message["role"] for message in first] == ["system", "user"]
    assert [message["role"] for message in second] == ["system", "user", "assistant", "user"]
    assert first[0] == second[0] == TURN
    assert prompt("").first_request("Why?", RULE, True) == first[1:]
    assert feedback_prompt(9, prompt(SYSTEM), True).first_request("Why?", RULE, True)[0] == TURN


def test_a_system_turn_is_sent_and_buys_again_and_an_empty_one_does_not(tmp_path):
    from fcot.llm.generate import generate_completions

    def buy(server, text):
        model = OpenAIModel(
            Server(model="m", model_id="m", chat=True, temperature=0.7, parameters={}, max_tokens_parameter="max_tokens",
                   base_url=server.base_url, timeout_s=20.0),
            Throttle(2, None, None), 1, 3,
        )  # fmt: skip
        list(generate_completions(plan(model, 1, prompt=prompt(text)), StoreFolder(tmp_path), problems(1)))
        return server.stats()

    with FakeServer() as server:
        before = buy(server, "")
        assert buy(server, "")["requests"] == before["requests"] == 2
        after = buy(server, SYSTEM)
    assert after["requests"] == 4
    assert all(request["body"]["messages"][0] == TURN for request in after["last"][2:])
    assert "tutor" not in json.dumps(before["last"])


def test_an_empty_system_turn_renames_no_run_and_a_text_does(files):
    base = (*SERVER, "method=fine_tune_cot")
    assert run_of(files, *base, "prompt.system=''").run_id == run_of(files, *base).run_id
    assert run_of(files, *base, f"prompt.system={SYSTEM}").run_id != run_of(files, *base).run_id


@pytest.mark.parametrize("method", ["zero_shot", "zero_shot_cot"])
def test_the_teacher_as_student_gets_the_system_turn(files, method):
    run = run_of(files, *SERVER, "student=teacher", f"method={method}", f"prompt.system={SYSTEM}")
    evaluation = evaluation_plan(run, "m")
    request = evaluation.step1(next(iter(run.problems.values())))
    assert request.prompt[0] == TURN
    assert run.run_id != run_of(files, *SERVER, "student=teacher", f"method={method}").run_id


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*SERVER, "prompt=zero_shot_cot", "teacher.endpoint=completions"), "completions has no system turn, teacher.endpoint=chat has"),
        (("teacher=oracle",), "teacher=oracle gets no chat messages"),
        (("dataset=custom", "dataset.path=FILES/rows.jsonl", "dataset.answer_type=number", "teacher=replay",
          "teacher.path=FILES/replay1.json", "diversity=2"), "teacher=replay gets no chat messages"),
        (("student=gpt2", "method=zero_shot_cot"), "student=gpt2 gets this prompt with method=zero_shot_cot and has no system turn"),
    ],
)  # fmt: skip
def test_a_system_turn_that_nobody_would_get_is_rejected(files, overrides, message):
    with pytest.raises(FcotError, match=message):
        run_of(files, *overrides, f"prompt.system={SYSTEM}")


# --- local models -----------------------------------------------------------------------------------------------------

TEMPLATES = {
    "accepts": "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}",
    "raises": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}",
    "drops": "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


def chat_model(model, folder, template):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATES[template]
    shutil.copytree(model, folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(("template", "reason"), [("raises", r" \(System role not supported\)"), ("drops", "")])
def test_a_chat_template_without_a_system_turn_is_rejected_by_name(model, tmp_path, template, reason):
    chat_model(model, tmp_path / template, template)
    teacher = HFModel(str(tmp_path / template), None, "m", True, 0.0, 2, 1)
    request = Request(prompt(SYSTEM).first_request("Why?", RULE, True), 4)
    with pytest.raises(FcotError, match=f"prompt.system: the model's chat template has no system turn{reason}; put the text"):
        asyncio.run(teacher.generate(request, 1, 0))
    without = Request(prompt("").first_request("Why?", RULE, True), 4)
    assert asyncio.run(teacher.generate(without, 1, 0)).choices


def test_a_chat_template_with_a_system_turn_renders_it(model, tmp_path):
    tokenizer = chat_model(model, tmp_path / "accepts", "accepts")
    (ids,) = encoder_of(tokenizer).turns([prompt(f" {SYSTEM} ").first_request("Why?", RULE, True)])
    assert tokenizer.decode(ids) == f"<system>{SYSTEM}<user>Q: Why?\nA: Let's think step by step."


def test_a_long_question_is_cut_and_the_system_turn_is_not(model, tmp_path):
    from types import SimpleNamespace

    from fcot.student.tokenization import encode_prompts

    tokenizer = chat_model(model, tmp_path / "accepts", "accepts")
    student = SimpleNamespace(tokenizer=tokenizer, chat=True)
    (ids,), cut = encode_prompts(student, [prompt(SYSTEM).first_request("one two three " * 50, RULE, True)], 60)
    assert cut == 1
    assert len(ids) <= 60
    assert tokenizer.decode(ids).startswith(f"<system>{SYSTEM}<user>")
    assert tokenizer.decode(ids).endswith("step by step.")
