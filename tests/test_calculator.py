"""The calculator: wrong numbers after an equals sign are corrected while a student writes, and nothing else changes."""

from __future__ import annotations

import json
from functools import cache, partial

import pytest
import torch
from configurations import make_run
from students import DECODERS, ENCODER_DECODERS, TEXTS, make_rows, make_student, tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, T5Config, T5ForConditionalGeneration, T5Tokenizer

import fcot
from fcot.base.errors import FcotError
from fcot.base.files import read_json, read_jsonl
from fcot.curation.equations import wrong_equations
from fcot.decoding.encoding import encoder_of
from fcot.decoding.engine import Decoder, DecodingPrompt, Sampling
from fcot.evaluate import overrides_of
from fcot.predict import main as predict
from fcot.predict import parse
from fcot.prompts.answers import AnswerRule
from fcot.prompts.student import StudentFormat
from fcot.report import report
from fcot.runs.pipeline import execute
from fcot.student.calculator import Calculator, Equations
from fcot.student.decoding import decode
from fcot.student.interface import StudentInterface, read_interface, write_interface
from fcot.student.loading import Student, save_student

CORRECTED = [
    ("48/2=25>> clips.", "48/2=24>> clips."),
    ("She has <<48/2=20>>20 left.", "She has <<48/2=24>>20 left."),
    ("48 / 2 = 25. So", "48 / 2 = 24. So"),
    ("48 / 2 = 25", "48 / 2 = 24"),
    ("48 / 2 =", "48 / 2 = 24"),
    ("<<48/2=>>", "<<48/2=24>>"),
    ("5 + 3 = 9 and then 9 + 1 = 11.", "5 + 3 = 8 and then 9 + 1 = 10."),
    ("5 + 3 = $9.00 in all", "5 + 3 = $8.00 in all"),
    ("5 apples + 3 apples = 1 apples.", "5 apples + 3 apples = 8 apples."),
    ("1,200 + 300 = 1,400 people live", "1,200 + 300 = 1,500 people live"),
    ("7 - 9 = 2, so", "7 - 9 = -2, so"),
    ("25 / 2 = 12 apples.", "25 / 2 = 12.5 apples."),
    ("10 / 3 = 3.4 so", "10 / 3 = 3.3 so"),
    ("10 / 3 = 4 so", "10 / 3 = 3.33 so"),
    ("1/4 = 20% of it", "1/4 = 25% of it"),
    ("5 + 3 = **9**. So", "5 + 3 = **8**. So"),
    ("5 + 3 = 9\n8 - 1 = 6\n", "5 + 3 = 8\n8 - 1 = 7\n"),
    ("0.5 + 0.25 = 1", "0.5 + 0.25 = 0.75"),
    ("8 * 125 = 99 ###", "8 * 125 = 1000 ###"),
    ("5 + 3 = 9 = 9 so", "5 + 3 = 8 = 9 so"),
    ("3 + 3 = 7 loads = 7 + 2 = 8.", "3 + 3 = 6 loads = 7 + 2 = 9."),
    ("5 x 7 points = 30 points --> 30", "5 x 7 points = 35 points --> 30"),
    ("5 x 7 = 30 --> 30", "5 x 7 = 35 --> 30"),
    ("5 x 7 = 30->30", "5 x 7 = 35->30"),
    ("10 + 4 = 16 apples - that is it.", "10 + 4 = 14 apples - that is it."),
    ("10 + 4 = 16 apples -> 16", "10 + 4 = 14 apples -> 16"),
    ("10 + 4 = 16 apples - ", "10 + 4 = 14 apples - "),
]  # fmt: skip
KEPT = [
    "48 / 2 = 24. So", "5 + 3 = 8", "10 / 3 = 3.33 so", "x + 3 + 4 = 9.", "the answer = 5", "3 + 4 = 5 + 2.", "100 / 3 = 33 1/3 so",
    "25 / 2 = 12 remainder 1.", "13 / 4 = 3 and 1/4", "6 / 2 = 3:1", "48/2 = <<48/2=24>>24 clips", "50 / 100 * 100 = 50% of", "5 + 3 = ?",
    "No equation here.", "1 / 0 = 5.", "5 * 12 inches = 5 feet.", "5 + 3 = x", "", "= 5", "100 - 20% = 80.",
    "48 / 2 =\n\n24", "3 + 4 = 5 apples + 2 apples.", "3 + 4 = 9 - 2.", "3 + 4 = 9 -- or so",
    "10 + 4 = 16 apples - 2 apples.", "10 + 4 = 16 apples - $2 = 14.", "10 + 4 = 16 ripe-ish - (2)", "3 + 4 = 9 apples-2",
    "3 + 4 = 9 apples – 2", "3 + 5 = 4 apples x 2",
]  # fmt: skip


@cache
def tokenizers(name):
    """A byte-level tokenizer like those of tiny students, T5's SentencePiece (without a line break) and GPT-2's."""
    if name == "t5":
        return T5Tokenizer().train_new_from_iterator([*TEXTS, *KEPT, *(text for pair in CORRECTED for text in pair)], 400)
    return GPT2Tokenizer().train_new_from_iterator(TEXTS, 400) if name == "gpt2" else tokenizer()


def as_tokens_read(tokens_of, text):
    return tokens_of.decode(encoder_of(tokens_of).texts([text])[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def written(tokens_of, script):
    """The text of a student that follows a script: the engine's rules without a model."""
    row = []
    calculator = Calculator(tokens_of)
    (ids,) = encoder_of(tokens_of).texts([script])
    for place in range(len(ids) + 1):
        ended = place == len(ids)
        sequence = row if ended else [*row, ids[place]]
        revision = calculator.revise(sequence, ended)
        row = list(sequence) if revision is None else [*row[: revision[0]], *revision[1]]
    return tokens_of.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False), calculator.equations


@pytest.mark.parametrize("name", ["tiny", "t5", "gpt2"])
@pytest.mark.parametrize(("script", "text"), CORRECTED)
def test_wrong_and_missing_numbers_are_computed(script, text, name):
    if name == "t5" and "\n" in script:
        pytest.skip("T5 has no line breaks")
    result, equations = written(tokenizers(name), script)
    assert result == as_tokens_read(tokenizers(name), text)
    assert equations.changed >= 1


@pytest.mark.parametrize("name", ["tiny", "t5", "gpt2"])
@pytest.mark.parametrize("script", KEPT)
def test_texts_without_a_wrong_equation_stay_as_they_are(script, name):
    result, equations = written(tokenizers(name), script)
    assert result == as_tokens_read(tokenizers(name), script)
    assert equations.changed == 0


@pytest.mark.parametrize("text", [text for _, text in CORRECTED])
def test_corrected_texts_are_not_corrected_again(text):
    assert written(tokenizer(), text)[0] == text


def test_equations_are_counted():
    script = "n = 7. 5 + 3 = 9. 8 - 1 = 7. x + 1 = 2."
    assert written(tokenizer(), script)[1] == Equations(met=4, computed=2, changed=1)


@pytest.mark.parametrize("task", ["svamp", "multiarith"])
def test_all_wrong_equations_of_real_rationales_are_corrected_and_right_ones_stay(task, shared_data):
    (file,) = (shared_data / "completion_data").rglob(f"D_{task}.json")
    texts = [row["reasoning_completion"].rstrip(" =") for rows in json.loads(file.read_text())["data"].values() for row in rows]
    wrong = [text for text in texts if wrong_equations(text)]
    assert len(wrong) >= 8
    assert not [text for text in wrong if wrong_equations(written(tokenizer(), text)[0])]
    right = [text for text in texts if text not in wrong][:100]
    assert [written(tokenizer(), text)[0] for text in right] == [as_tokens_read(tokenizer(), text) for text in right]


class Replacing:
    """A reviser that once keeps some tokens and replaces the others: at a given length, or at the end token."""

    def __init__(self, at, n_kept, ids):
        self.at, self.n_kept, self.ids = at, n_kept, ids

    def revise(self, written, ended):
        due = ended if self.at == "end" else self.at is not None and len(written) >= self.at
        if not due:
            return None
        self.at = None
        return self.n_kept, self.ids


LIMIT = 16
IDS = [40, 41, 42]


def decoded(student, prompts, max_tokens=10**9, sampling=Sampling()):  # noqa: B008
    results = Decoder(student.model, student.ends, sampling, max_tokens).run(iter(enumerate(prompts)))
    return [written for _, written in sorted(results, key=lambda item: item[0])]


def continued(student, prompt, tokens):
    """The tokens that transformers writes greedily after a prompt and a text that begins with these tokens."""
    if student.architecture == "encoder_decoder":
        start = [student.model.config.decoder_start_token_id, *tokens]
        inputs = {"input_ids": torch.tensor([prompt.ids]), "decoder_input_ids": torch.tensor([start])}
        n_before = 1
    else:
        inputs, n_before = {"input_ids": torch.tensor([[*prompt.ids, *tokens]])}, len(prompt.ids)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    ids = student.model.generate(**inputs, do_sample=False, max_new_tokens=LIMIT - len(tokens))[0, n_before:].tolist()
    return ids[:-1] if ids[-1] in student.ends else ids


@pytest.mark.parametrize("family", ENCODER_DECODERS + DECODERS)
@pytest.mark.parametrize("rows_per_pass", [1, 3, 20])
def test_the_model_goes_on_from_a_replacement_whatever_else_is_in_the_batch(family, rows_per_pass):
    student = make_student(family)
    plain = [DecodingPrompt(row.prompt, LIMIT) for row in make_rows(student, 10)]
    before = decoded(student, plain)
    prompts, expected = [], []
    for place, (prompt, written) in enumerate(zip(plain, before, strict=True)):
        at, n_kept = place + 2, max(0, place - 2)
        if place % 3 == 0 or len(written.ids) < at:
            prompts.append(prompt)
            expected.append(written.ids)
        else:
            prompts.append(DecodingPrompt(prompt.ids, LIMIT, reviser=partial(Replacing, at, n_kept, IDS)))
            expected.append(continued(student, prompt, [*written.ids[:n_kept], *IDS]))
    assert expected != [written.ids for written in before]
    width = max(len(prompt.ids) for prompt in prompts)
    assert [written.ids for written in decoded(student, prompts, rows_per_pass * (width + 64))] == expected


@pytest.mark.parametrize("family", ["flan_t5", "gpt2"])
def test_a_replacement_at_the_end_of_an_answer_is_written_before_it_ends(family):
    student = make_student(family)
    texts = [(row.prompt, decoded(student, [DecodingPrompt(row.prompt, LIMIT)])[0].ids) for row in make_rows(student, 10)]
    ids, text, n = next((ids, text, n) for ids, text in texts for n in range(2, LIMIT) if text[n] not in text[:n])
    decoder = Decoder(student.model, [text[n]], Sampling(), 10**9)  # the text ends before this token
    ((_, written),) = decoder.run(iter([(0, DecodingPrompt(ids, LIMIT, reviser=partial(Replacing, "end", n - 2, IDS)))]))
    assert written.ids == [*text[: n - 2], *IDS]
    assert written.complete
    assert written.n_tokens == n + 2


@pytest.mark.parametrize("limit", [4, 5, 6])
def test_a_replacement_does_not_exceed_the_limit(limit):
    student = make_student("t5")
    (prompt,) = (DecodingPrompt(row.prompt, limit, (1, 2), reviser=partial(Replacing, 4, 3, IDS)) for row in make_rows(student, 1))
    (written,) = decoded(student, [prompt], sampling=Sampling(1.0))
    assert len(written.ids) <= limit


def test_sampled_texts_without_equations_are_the_same_with_a_calculator():
    student = make_student("gpt2")
    prompts = [DecodingPrompt(row.prompt, LIMIT, (0, place)) for place, row in enumerate(make_rows(student, 12))]
    plain, computed = (decode(student, prompts, max_tokens=10**9, sampling=Sampling(0.7), calculator=on) for on in (False, True))
    pairs = [(a.text, b.text) for a, b in zip(plain, computed, strict=True) if not b.equations.changed]
    assert pairs
    assert all(a == b for a, b in pairs)


def test_memory_running_out_repeats_a_row_with_a_fresh_reviser(monkeypatch):
    student = make_student("gpt2")
    prompts = [DecodingPrompt(row.prompt, LIMIT, reviser=partial(Replacing, 4, 2, IDS)) for row in make_rows(student, 6)]
    expected = [written.ids for written in decoded(student, prompts)]
    step, calls = Decoder._step, iter(range(1000))

    def failing(decoder):
        if next(calls) == 7:
            raise torch.OutOfMemoryError
        step(decoder)

    monkeypatch.setattr(Decoder, "_step", failing)
    assert [written.ids for written in decoded(student, prompts, max_tokens=10**4)] == expected
    assert expected[0][2:5] == IDS


def test_a_model_that_cannot_take_back_tokens_is_rejected():
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(vocab_size=len(tokenizer()), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
                        encoder_attention_heads=2, decoder_attention_heads=2)  # fmt: skip
    student = Student(BartForConditionalGeneration(config).eval(), tokenizer(), "encoder_decoder")
    with pytest.raises(FcotError, match=r"student\.calculator=true: BartForConditionalGeneration has absolute positions"):
        decode(student, [], max_tokens=100, calculator=True)


# --- students that write equations ------------------------------------------------------------------------------------

SCRIPT = " 7+8 = 12 so"
FORMAT = StudentFormat("{question} ###", "{rationale} --> {answer}", "-->")


def scripted(family, script=SCRIPT):
    """A student that always writes this script, whose tokens must differ: its next token depends on its last one only."""
    ids = encoder_of(tokenizer()).texts([script])[0]
    assert len(set(ids)) == len(ids)
    n, end = len(tokenizer()), tokenizer().eos_token_id
    width = n + n % 2
    common = {"vocab_size": n, "eos_token_id": end, "pad_token_id": tokenizer().pad_token_id, "tie_word_embeddings": False}
    if family == "t5":
        model = T5ForConditionalGeneration(T5Config(
            **common, d_model=width, d_kv=2, d_ff=2, num_layers=1, num_heads=1, decoder_start_token_id=tokenizer().pad_token_id,
        ))  # fmt: skip
        model.lm_head = torch.nn.Linear(width, n, bias=False)  # transformers ties T5's head whatever the config says
    else:
        model = GPT2LMHeadModel(GPT2Config(**common, n_embd=width, n_layer=1, n_head=2, n_inner=2, n_positions=400, bos_token_id=end))
    following = dict(zip(ids, [*ids[1:], end], strict=True))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(float("norm" in name or ("ln_" in name and name.endswith("weight"))))
            if any(part in name for part in ("shared", "embed_tokens", "wte")):
                weight[range(n), range(n)] = 1.0
        head = model.get_output_embeddings().weight
        for token in range(n):
            head[following.get(token, ids[0]), token] = 99.0
    return Student(model.eval(), tokenizer(), "encoder_decoder" if family == "t5" else "decoder")


@pytest.fixture(scope="module", params=["t5", "gpt2"])
def student(request):
    return scripted(request.param)


@pytest.fixture
def folder(student, tmp_path):
    """The folder of a student that was trained with a calculator."""
    save_student(student, tmp_path / "student", 30)
    rule = AnswerRule("number")
    write_interface(tmp_path / "student", StudentInterface("shops", "fine_tune_cot", FORMAT, rule, False, 64, 30, calculator=True))
    return tmp_path / "student"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5)])
@pytest.mark.parametrize("max_tokens", [1, 300, 10**6])
def test_a_student_answers_with_the_computed_value(student, sampling, max_tokens):
    prompts = [
        DecodingPrompt(encoder_of(student.tokenizer).prompt("word " * n + "###"), 30, (n,) if sampling.temperature else ())
        for n in range(1, 8)
    ]  # fmt: skip
    plain, computed = (decode(student, prompts, max_tokens=max_tokens, sampling=sampling, calculator=on) for on in (False, True))
    assert {(answer.text.strip(), answer.complete, answer.equations) for answer in plain} == {("7+8 = 12 so", True, None)}
    assert all(answer.text.strip() == "7+8 = 15 so" and answer.complete for answer in computed)
    assert all(answer.equations == Equations(1, 1, 1) for answer in computed)


def test_students_trained_with_a_calculator_predict_with_it(folder, capsys):
    texts = []
    for words in ([], ["calculator=false"], ["calculator=true"]):
        predict([str(folder), "How many?", *words])
        out, err = capsys.readouterr()
        texts.append(("= 15 so" in out, "calculator: 1 of 1 equations corrected" in err))
    assert texts == [(True, True), (False, False), (True, True)]
    with_it, without = (fcot.Student(folder).answer("How many?", calculator=on)[0].completion for on in (None, False))
    assert (with_it.strip()[-5:], without.strip()[-5:]) == ("15 so", "12 so")


def test_an_evaluation_uses_the_calculator_of_the_students_run_and_reports_what_it_did(folder, tmp_path, capsys):
    words = [str(folder), "dataset=toy_arithmetic", "dataset.n_problems=20"]
    runs = [make_run(tmp_path, *overrides_of([*words, *more])) for more in ([], ["student.calculator=false"])]
    with_it, without = (execute(run, "") for run in runs)
    n = with_it["n_test"]
    assert with_it["equations"] == {"met": n, "computed": n, "changed": n}
    assert "equations" not in without
    assert [{row["prediction"] for row in read_jsonl(run.directory.predictions)} for run in runs] == [{"15"}, {"12"}]
    report([run.directory.path for run in runs])
    assert "corrected %" in capsys.readouterr().out
    assert not with_it["as_published"]


def test_a_calculator_renames_only_the_runs_that_use_it(tmp_path):
    plain, same, other = (
        make_run(tmp_path, "dataset.n_problems=20", *words).run_id
        for words in ([], ["student.calculator=false"], ["student.calculator=true"])
    )  # fmt: skip
    assert plain == same != other


def test_the_file_of_a_student_without_a_calculator_does_not_mention_it(tmp_path):
    write_interface(tmp_path, StudentInterface("shops", "fine_tune_cot", FORMAT, AnswerRule("number"), False, 64, 30))
    assert "calculator" not in read_json(tmp_path / "fcot.json")
    assert not read_interface(tmp_path).calculator


@pytest.mark.parametrize("value", ["yes", "1", ""])
def test_predict_reads_true_and_false_only(value, folder):
    with pytest.raises(FcotError, match=f"calculator={value}: choose from true, false"):
        parse([str(folder), "How many?", f"calculator={value}"])
