"""Real pretrained models, if they are on this machine: FCOT_TEST_MODELS names their folder (default: ~/models)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fcot.decoding.engine import DecodingPrompt
from fcot.llm.generate import generate_completions
from fcot.runs.pipeline import execute
from fcot.student.decoding import decode
from fcot.student.loading import load_student

MODELS = Path(os.environ.get("FCOT_TEST_MODELS", "~/models")).expanduser()
QUESTIONS = ["Tom has 3 coins. Ann gives him 2. How many coins has Tom?", "2 + 2 =", "A dog is", "Q: Is the sky green?\nA:"]
pytestmark = pytest.mark.slow


@pytest.fixture(params=["gemma3_270m", "qwen_coder_0_5b"])
def folder(request):
    if not (MODELS / request.param / "config.json").exists():
        pytest.skip(f"needs real weights in {MODELS / request.param}")
    return MODELS / request.param


def test_decoded_answers_equal_transformers_generate(folder):
    student = load_student(str(folder))
    ids = student.tokenizer(QUESTIONS)["input_ids"]
    answers = decode(student, [DecodingPrompt(prompt, 24) for prompt in ids], max_tokens=1 << 16)
    for prompt, answer in zip(ids, answers, strict=True):
        with torch.no_grad():
            written = student.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
        assert answer.text == student.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_local_teachers_completions_equal_transformers_generate(folder, endpoint, make_run, tmp_path):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if endpoint == "chat" and not tokenizer.chat_template:
        pytest.skip("a base model has no chat template")
    run = make_run(
        tmp_path, "teacher=hf", f"teacher.path={folder}", f"teacher.endpoint={endpoint}", "prompt=zero_shot_cot",
        "prompt.rationale_tokens=24", "prompt.answer_tokens=4", "dataset.n_problems=30", "dataset.limit=3", "diversity=1", "until=generate",
    )  # fmt: skip
    generated = generate_completions(run.plan, run.store, run.select(run.split.train))
    completions = {completion.sample_index: completion for completion in generated}
    assert len(completions) == 3
    for index, completion in completions.items():
        prompt = run.prompt.first_request(run.problems[index].question, run.task.rule, chat=endpoint == "chat")
        if endpoint == "chat":
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        else:
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            written = model.generate(ids, max_new_tokens=24, do_sample=False)[0]
        whole, before = (tokenizer.decode(part, skip_special_tokens=True) for part in (written, ids[0]))
        assert completion.rationale.strip() == whole.removeprefix(before).strip()


@pytest.mark.parametrize("lora", [[], ["student.lora.rank=4"]], ids=["all weights", "lora"])
def test_a_trained_student_is_loaded_by_transformers(folder, lora, make_run, tmp_path):
    settings = [
        "student=causal", f"student.path={folder}", "dataset.n_problems=30", "diversity=1", "trainer.warmup_steps=1",
        "trainer.evaluate_every_steps=null", "trainer.batch_size=2", "trainer.max_steps=2", "trainer.lr=1e-5", "student.max_new_tokens=4",
        "trainer.selection=last", *lora,
    ]  # fmt: skip
    run = make_run(tmp_path, *settings, "until=train")
    summary = execute(run, "")
    assert summary["n_steps"] == 2
    saved = AutoModelForCausalLM.from_pretrained(run.directory.student)
    assert AutoTokenizer.from_pretrained(run.directory.student)("a b")["input_ids"]
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    original = dict(before.named_parameters())
    changed = [name for name, parameter in saved.named_parameters() if not torch.equal(parameter, original[name])]
    assert changed
    assert max(float((parameter - original[name]).detach().abs().max()) for name, parameter in saved.named_parameters()) < 1e-3
