"""Students: loading and its messages, texts as tokens, the Arrow cache that runs share, and the interface file of a saved student."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import warnings
from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from students import make_rows, make_samples, make_student, save_gpt2, save_t5
from tokenizers import processors

from fcot.base.errors import FcotError
from fcot.base.files import TEMPORARY
from fcot.base.ranks import World, started_outside
from fcot.base.records import Prediction
from fcot.evaluation.scoring import majority
from fcot.methods.table import METHODS
from fcot.prompts.answers import AnswerRule
from fcot.student import tokenization
from fcot.student.decoding import DecodingPrompt, decode
from fcot.student.interface import FILE, StudentInterface, read_interface, write_interface
from fcot.student.loading import (
    PAD,
    Lora,
    add_lora,
    build_tiny,
    check_student,
    load_student,
    save_student,
    tokenizer_identity,
    train_tokenizer,
)
from fcot.student.tokenization import TokenizedSample, encode_prompts, tokenize, tokenize_once

COT = METHODS["fine_tune_cot"].formats
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(params=["t5", "gpt2"])
def student(request):
    return make_student(request.param)


# --- texts as tokens ---


def test_truncation_keeps_the_end_of_the_question_and_is_counted(student):
    form = COT[student.architecture]
    question = "Ada has many coins. " * 30 + "How many are left now?"
    rows = tokenize(student, form, [(question, "So 3. --> 3"), ("Short?", "3 " * 100)], max_prompt=40, max_completion=20)
    assert (rows.cut_prompts, rows.cut_completions) == (1, 1)
    assert rows.lengths.tolist() == [[40, len(rows[0].completion)], [len(rows[1].prompt), 20]]
    text = student.tokenizer.decode(rows[0].prompt, skip_special_tokens=True)
    assert text.replace(" ", "").endswith(form.prompt("How many are left now?").replace(" ", ""))
    assert rows[0].completion[-1] == student.tokenizer.eos_token_id != rows[1].completion[-1]


def test_completions_and_encoder_inputs_end_with_the_end_token(student):
    row = make_rows(student, 2)[0]
    assert row.completion[-1] == student.tokenizer.eos_token_id
    assert (row.prompt[-1] == student.tokenizer.eos_token_id) == (student.architecture == "encoder_decoder")


def test_prompts_for_decoding_equal_the_prompts_of_training(student):
    samples = make_samples(student, 6)
    rows = tokenize(student, COT[student.architecture], samples, max_prompt=20, max_completion=48)
    prompts, cut = encode_prompts(student, [COT[student.architecture].prompt(question) for question, _ in samples], 20)
    assert prompts == [row.prompt for row in rows]
    assert cut == rows.cut_prompts > 0
    assert [row.completion for row in tokenize(student, COT["decoder"], [("Why?", None)], max_prompt=20, max_completion=9)] == [[]]


def test_truncation_keeps_the_token_at_the_beginning_of_every_text():
    """Llama's tokenizer puts one before every text. It stays where the beginning of the question is cut."""
    student = make_student("llama")
    plain = encode_prompts(student, [COT["decoder"].prompt("How many are left?")], 64)[0][0]
    student.tokenizer.bos_token = PAD
    student.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{PAD} $A", special_tokens=[(PAD, 0)])
    assert encode_prompts(student, [COT["decoder"].prompt("How many are left?")], 64) == ([[0, *plain]], 0)
    assert encode_prompts(student, [COT["decoder"].prompt("How many are left?")], 5) == ([[0, *plain[-4:]]], 1)


def test_questions_go_through_the_chat_template(tmp_path):
    student = load_student(str(save_gpt2(tmp_path, TEMPLATE)), chat=True)
    prompts, cut = encode_prompts(student, ["How many?", "Who?"], 64)
    assert [student.tokenizer.decode(ids) for ids in prompts] == ["<user>How many?</s><assistant>", "<user>Who?</s><assistant>"]
    assert cut == 0
    check_student(str(tmp_path), None, 64, 64, chat=True)
    save_gpt2(tmp_path / "without")
    with pytest.raises(FcotError, match=r"student\.chat_template: the tokenizer of .* has no chat template; student\.chat_template=false"):
        check_student(str(tmp_path / "without"), None, 64, 64, chat=True)


def test_the_share_of_unknown_tokens_is_measured(tmp_path):
    form = METHODS["fine_tune"].formats["encoder_decoder"]
    student = load_student(str(save_t5(tmp_path)))
    plain = tokenize(student, form, [("How many?", "3")], max_prompt=64, max_completion=64)
    braces = tokenize(student, form, [(r"How many \frac{1}{2}?", "3")], max_prompt=64, max_completion=64)
    assert plain.unknown_share == 0
    unknown = sum(row.prompt.count(student.tokenizer.unk_token_id) for row in braces)
    assert unknown >= 4
    assert braces.unknown_share == unknown / sum(len(row.prompt) + len(row.completion) for row in braces)


def test_tokenization_in_several_batches_changes_nothing(student, monkeypatch, tmp_path):
    whole = list(make_rows(student, 10))
    monkeypatch.setattr(tokenization, "_BATCH", 3)
    assert list(make_rows(student, 10)) == whole
    assert list(tokenize_once(tmp_path / "rows.arrow", lambda: make_rows(student, 10))) == whole
    assert make_rows(student, 10)[-1] == whole[-1]
    assert make_rows(student, 10)[2:5] == whole[2:5]


# --- the cache that runs share ---


def test_the_cache_returns_the_tokenized_samples(student, tmp_path):
    rows = tokenize(student, COT[student.architecture], make_samples(student, 9), max_prompt=20, max_completion=10)
    path = tmp_path / "cache" / "rows.arrow"
    stored = tokenize_once(path, lambda: rows)
    assert list(stored) == list(rows)
    assert (stored.lengths == rows.lengths).all()
    assert (stored.cut_prompts, stored.cut_completions, stored.unknown_share) == (
        rows.cut_prompts,
        rows.cut_completions,
        rows.unknown_share,
    )
    assert rows.cut_prompts
    assert rows.cut_completions
    again = tokenize_once(path, lambda: pytest.fail("tokenized twice"))
    assert list(again) == list(rows)
    assert all(isinstance(token, int) for token in again[0].prompt), "plain integers"


def _tokenize_in_process(path, log, started):
    def tokenize_slowly():
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        started.set()
        time.sleep(0.3)
        return tokenization.Tokenized(
            pa.table({"prompt": [[1, 2], [3]], "completion": [[4], [5, 6]], "demonstrations": [1, 0]}, schema=tokenization._SCHEMA)
        )

    assert list(tokenize_once(path, tokenize_slowly)) == [TokenizedSample([1, 2], [4], 1), TokenizedSample([3], [5, 6])]


def _processes(n, *arguments):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    processes = [context.Process(target=_tokenize_in_process, args=(*arguments, started)) for _ in range(n)]
    for process in processes:
        process.start()
    return started, processes


def test_two_processes_tokenize_once(tmp_path):
    _, processes = _processes(2, tmp_path / "rows.arrow", tmp_path / "log")
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((tmp_path / "log").read_text().split()) == 1


def test_a_killed_process_leaves_no_partial_file_and_no_lock(tmp_path):
    started, (process,) = _processes(1, tmp_path / "rows.arrow", tmp_path / "log")
    started.wait()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "rows.arrow").exists()
    _, processes = _processes(1, tmp_path / "rows.arrow", tmp_path / "log")
    processes[0].join()
    assert processes[0].exitcode == 0


def test_a_write_that_fails_leaves_no_file(monkeypatch, tmp_path):
    rows = make_rows(make_student("gpt2"), 3)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FcotError, match="no space left"):
        tokenize_once(tmp_path / "rows.arrow", lambda: rows)
    assert not list(tmp_path.glob("*.arrow*"))
    assert not [path for path in tmp_path.iterdir() if TEMPORARY in path.name]


def test_a_truncated_cache_file_is_written_again(tmp_path):
    rows, path = make_rows(make_student("gpt2"), 3), tmp_path / "rows.arrow"
    tokenize_once(path, lambda: rows)
    path.write_bytes(path.read_bytes()[:100])
    assert list(tokenize_once(path, lambda: rows)) == list(rows)


def test_the_tokenizers_identity_is_its_content(tmp_path):
    first, second = (load_student(str(save_gpt2(tmp_path / name))) for name in ("first", "second"))
    chat = load_student(str(save_gpt2(tmp_path / "chat", TEMPLATE)))
    t5 = load_student(str(save_t5(tmp_path / "t5")))
    assert tokenizer_identity(first) == tokenizer_identity(second)
    assert len({tokenizer_identity(student) for student in (first, chat, t5)}) == 3


# --- loading ---


def test_a_folder_without_weights_is_named(tmp_path):
    folder = save_gpt2(tmp_path / "student")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FcotError, match=r"student\.path=.*weights"):
        load_student(str(folder))


def test_if_the_hub_is_unreachable_the_message_names_student_path():
    with pytest.raises(FcotError, match=r"student\.path=FOLDER"):
        load_student("nobody/nothing")


@pytest.mark.parametrize("save", [save_gpt2, save_t5])
def test_the_decoding_defaults_of_a_model_folder_are_ignored(save, tmp_path):
    plain = load_student(str(save(tmp_path)))
    defaults = {"num_beams": 4, "do_sample": True, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_new_tokens": 9}
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | defaults))
    with_defaults = load_student(str(tmp_path))
    prompts = [DecodingPrompt(row.prompt, 12) for row in make_rows(plain, 4)]
    answers = [decode(student, prompts, max_tokens=10**6) for student in (plain, with_defaults)]
    assert answers[0] == answers[1]
    assert not with_defaults.model.generation_config.do_sample
    assert with_defaults.model.generation_config.num_beams in (None, 1)


@pytest.mark.parametrize("family", ["t5", "flan_t5", "gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma3"])
@pytest.mark.parametrize("lora", [None, Lora(2, 8.0), Lora(2, 8.0, targets=("all-linear",))], ids=["full", "lora", "lora-all-linear"])
def test_saved_students_load_in_transformers(family, lora, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    student = make_student(family)
    if lora:
        student = add_lora(student, lora)
        adapted = {name for name, parameter in student.model.named_parameters() if parameter.requires_grad}
        assert any(part in name for part in ("mlp", "DenseReluDense") for name in adapted) == bool(lora.targets)
        with torch.no_grad():  # adapters start at zero
            for parameter in student.model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter) * parameter.requires_grad)
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    save_student(student, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.model.state_dict().items()), "saving changes no weight"
    model_class = AutoModelForSeq2SeqLM if student.architecture == "encoder_decoder" else AutoModelForCausalLM
    loaded, loading_info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading_info["missing_keys"]
    assert not loading_info["unexpected_keys"]
    assert type(loaded) is type(make_student(family).model), "loads without peft"
    assert not list(tmp_path.glob("adapter*"))
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])} | ({"labels": torch.tensor([[9, 8]])} if family in ("t5", "flan_t5") else {})
    with torch.no_grad():
        saved_logits, loaded_logits = student.model.eval()(**inputs).logits, loaded.eval()(**inputs).logits
        plain = make_student(family).model(**inputs).logits
    torch.testing.assert_close(saved_logits, loaded_logits, atol=1e-3, rtol=1e-3)  # merging adapters rounds each weight once
    assert (saved_logits - plain).abs().max() > 1e-2 or not lora
    text = "Rosa has 7 coins. --> 13"
    # Transformers splits words as Qwen2's own tokenizer does; the small tokenizer of the tests splits differently.
    assert family == "qwen2" or AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == student.tokenizer(text)["input_ids"]


def test_only_adapters_are_trained_and_unknown_layers_are_rejected(student):
    n = sum(parameter.numel() for parameter in student.model.parameters())
    adapted = add_lora(make_student("gpt2"), Lora(2, 8.0, targets=["c_proj"]))
    trained = {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name and "c_proj" in name for name in trained)
    assert 0 < sum(p.numel() for p in adapted.model.parameters() if p.requires_grad) < n / 10
    with pytest.raises(FcotError, match=r"student\.lora\.targets=\['nothing'\]"):
        add_lora(student, Lora(2, 8.0, targets=["nothing"]))


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_adapters_are_added_without_a_warning(family):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(make_student(family), Lora(2, 8.0))


@pytest.mark.parametrize(("save", "removed"), [(save_gpt2, "tokenizer"), (save_t5, "tokenizer")])
def test_a_folder_without_its_tokenizer_is_rejected(save, removed, tmp_path):
    folder = save(tmp_path)
    for file in folder.glob(f"*{removed}*"):
        file.unlink()
    (folder / "vocab.json").unlink(missing_ok=True)
    with pytest.raises(FcotError, match="the folder has no tokenizer"):
        check_student(str(folder), None, 64, 64)


def test_too_few_positions_and_damaged_weights_are_rejected(tmp_path):
    folder = save_gpt2(tmp_path)
    with pytest.raises(FcotError, match="has 1024 positions"):
        check_student(str(folder), None, 512, 513)
    assert check_student(str(folder), None, 512, 512) == "decoder"
    assert check_student(str(save_t5(tmp_path / "t5")), None, 9999, 9999) == "encoder_decoder"
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(FcotError, match=r"student\.path="):
        load_student(str(folder))


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_a_tiny_student_has_no_dropout_and_represents_any_text(architecture):
    student = build_tiny(architecture, train_tokenizer(["some text"], 300), width=16, layers=1, heads=2, max_length=64)
    student.model.train()
    inputs = {"input_ids": torch.tensor([[5, 6]])} | ({"labels": torch.tensor([[3]])} if architecture == "encoder_decoder" else {})
    assert torch.equal(student.model(**inputs).logits, student.model(**inputs).logits)
    text = "naïve → 日本 {x}\n"
    assert student.tokenizer.decode(student.tokenizer(text)["input_ids"]) == text


# --- the interface of a student ---


def test_the_folder_of_a_student_contains_its_interface(tmp_path):
    rule = AnswerRule("number")
    interface = StudentInterface("toy_arithmetic", "fine_tune_cot", COT["chat"], rule, True, 256, 99)
    write_interface(tmp_path, interface)
    assert read_interface(tmp_path) == interface
    content = json.loads((tmp_path / FILE).read_text())
    for broken in (content | {"more": 1}, {k: v for k, v in content.items() if k != "rule"}, content | {"format": {"x": 1}}, [1]):
        (tmp_path / FILE).write_text(json.dumps(broken))
        with pytest.raises(FcotError, match=r"its fcot\.json is (missing|damaged)"):
            read_interface(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(FcotError, match="is missing"):
        read_interface(tmp_path)


def prediction(value, text=""):
    return Prediction(0, "How many?", "3", text, value, value == "3", True, 4)


@pytest.mark.parametrize(("drawn", "winner"), [
    (["3", "4", "3"], 0), (["4", "3", "3"], 1), (["4", "3"], 0), ([None, None, "7"], 2), ([None, None], 0), (["3"], 0),
    ([None, "4", "3", "4", None, None], 1), (["1", "2", "2", "1"], 0),
])  # fmt: skip
def test_the_majority_decides(drawn, winner):
    samples = [prediction(value, str(index)) for index, value in enumerate(drawn)]
    assert majority(samples) is samples[winner]


# --- processes ---


@pytest.fixture
def environment(monkeypatch):
    for name in ("SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_PROCID", "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}


@pytest.mark.parametrize(("variables", "world"), [
    ({}, None), (TORCHRUN, World(3, 4, 2)), (SRUN, World(2, 4, 2, slurm=True)),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, None), ({"RANK": "1", "WORLD_SIZE": "4"}, None),
])  # fmt: skip
def test_processes_that_torchrun_or_srun_started_are_recognized(variables, world, environment):
    environment(**variables)
    assert started_outside(2, 2) == world


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN])
def test_a_number_of_processes_other_than_the_configured_one_is_rejected(variables, environment):
    environment(**variables)
    with pytest.raises(FcotError, match=r"4 processes were started, and trainer\.devices=2 times trainer\.nodes=1 is 2"):
        started_outside(2, 1)


def test_a_single_process_needs_no_world(environment):
    environment(**SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert started_outside(1, 1) is None
    environment(TORCHELASTIC_RUN_ID="none", RANK="0", WORLD_SIZE="1")
    assert started_outside(1, 1) is None


def test_an_overlong_question_is_cut_inside_its_turn():
    student = make_student("gpt2")
    student.tokenizer.chat_template = TEMPLATE
    student = replace(student, chat=True)
    form = METHODS["fine_tune_cot"].formats["chat"]
    (short,), cut = encode_prompts(student, [form.prompt("How many are left?")], 1000)
    assert cut == 0
    (ids,), cut = encode_prompts(student, [form.prompt("Ada has many coins. " * 30 + "How many are left?")], len(short) + 4)
    text = student.tokenizer.decode(ids)
    assert (cut, len(ids) <= len(short) + 4) == (1, True)
    assert text.startswith("<user>")
    assert text.endswith("How many are left?</s><assistant>")
