"""Students: batch invariance, truncation, formats on tokens, and what is said about bad folders."""

from __future__ import annotations

import json

import pytest
import torch
from students import TEXTS, save_gpt2, save_t5

from fcot.errors import FcotError
from fcot.prompts.student import METHODS
from fcot.student.data import StepBatches, batch_of_step, steps_per_epoch
from fcot.student.decoding import decode
from fcot.student.loading import build_tiny, check_student, load_student
from fcot.student.losses import completion_loss
from fcot.student.module import StudentModule
from fcot.student.tokenization import IGNORED, Row, collate, tokenize
from fcot.student.training import count_steps, train
from fcot.tasks.toy import TOY_TASKS, make_problems

FAMILIES = ("t5", "flan_t5", "gpt2", "tiny_t5", "tiny_gpt2")


def make_student(family, folder):
    """Any family without dropout, pretrained ones through a folder; weights large enough that answers differ."""
    if family == "gpt2":
        student = load_student(str(save_gpt2(folder)))
    elif family in ("t5", "flan_t5"):
        student = load_student(str(save_t5(folder, gated=family == "flan_t5")))
    else:
        torch.manual_seed(0)
        architecture = "encoder_decoder" if family == "tiny_t5" else "decoder"
        student = build_tiny(architecture, TEXTS, width=32, layers=2, heads=4, vocab_size=400, max_length=256)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    student.model.eval()
    return student


@pytest.fixture(scope="module", params=FAMILIES)
def student(request, tmp_path_factory):
    return make_student(request.param, tmp_path_factory.mktemp(request.param))


def make_rows(student, n, with_completion=True):
    """Rows of very different lengths, out of two toy tasks."""
    form = METHODS["fine_tune_cot"].formats[student.architecture]
    samples = []
    for name in ("toy_arithmetic", "toy_last_letter"):
        for problem in make_problems(TOY_TASKS[name], n // 2, seed=3):
            rationale = TOY_TASKS[name].rationale(problem.question, problem.sample_index, None)
            rationale = rationale[: 20 + 12 * problem.sample_index]
            samples.append((problem.question, form.completion(problem.answer, rationale) if with_completion else None))
    return tokenize(student.tokenizer, form, student.architecture, samples, max_prompt=128, max_completion=128).rows


@pytest.mark.parametrize("batch_size", [3, 16])
def test_loss_does_not_depend_on_batch_size_or_neighbours(student, batch_size):
    rows = make_rows(student, 16)
    pad = student.tokenizer.pad_token_id

    def losses(size):
        parts = [
            completion_loss(student.model, collate(rows[i : i + size], student.architecture, pad), student.architecture)
            for i in range(0, 16, size)
        ]
        return sum(loss.item() for loss, _ in parts), sum(count for _, count in parts)

    alone, n_alone = losses(1)
    together, n_together = losses(batch_size)
    assert n_alone == n_together == sum(len(row.completion) for row in rows)
    assert together / n_together == pytest.approx(alone / n_alone, abs=1e-5)


def test_one_row_has_the_same_loss_beside_longer_neighbours(student):
    rows = sorted(make_rows(student, 16), key=lambda row: len(row.prompt) + len(row.completion))
    pad = student.tokenizer.pad_token_id
    alone, n = completion_loss(student.model, collate(rows[:1], student.architecture, pad), student.architecture)
    batch = collate([rows[0], *rows[-3:]], student.architecture, pad)
    batch["labels"][1:] = IGNORED
    beside, n_beside = completion_loss(student.model, batch, student.architecture)
    assert n == n_beside
    assert beside.item() / n == pytest.approx(alone.item() / n, abs=1e-5)


@pytest.mark.parametrize("batch_size", [3, 16])
def test_texts_do_not_depend_on_batch_size_or_neighbours(student, batch_size):
    rows = make_rows(student, 16, with_completion=False)
    one_by_one = decode(student, rows, max_new_tokens=24, batch_size=1)
    assert decode(student, rows, max_new_tokens=24, batch_size=batch_size) == one_by_one
    assert decode(student, rows[::-1], max_new_tokens=24, batch_size=batch_size) == one_by_one[::-1]
    assert len({answer.text for answer in one_by_one}) > 4, "a student that always says the same would prove nothing"


def test_loss_counts_completion_tokens_only(student):
    """Against the model's own mean loss on one row, prompt positions masked by hand."""
    row = make_rows(student, 2)[0]
    loss, n = completion_loss(student.model, collate([row], student.architecture, 0), student.architecture)
    if student.architecture == "encoder_decoder":
        expected = student.model(input_ids=torch.tensor([row.prompt]), labels=torch.tensor([row.completion])).loss
    else:
        ids = torch.tensor([row.prompt + row.completion])
        logits = student.model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(row.completion))
    assert n == len(row.completion)
    assert loss.item() / n == pytest.approx(expected.item(), abs=1e-5)


def test_decoding_stops_at_the_end_token(student):
    """A student overfitted on one short answer ends by itself; its length counts the end token."""
    model = student.model
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    row = tokenize(
        student.tokenizer, METHODS["fine_tune"].formats[student.architecture], student.architecture, [("How many?", "13")],
        max_prompt=64, max_completion=64,
    ).rows[0]  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss, n = completion_loss(model, collate([row], student.architecture, 0), student.architecture)
        (loss / n).backward()
        optimizer.step()
        optimizer.zero_grad()
    answer = decode(student, [Row(row.prompt, [])], max_new_tokens=40, batch_size=4)[0]
    model.load_state_dict(state)
    assert answer.text.strip() == "13"
    assert answer.complete
    assert answer.n_tokens == len(row.completion)


def test_truncation_spares_the_questions_end_and_is_counted(student):
    form = METHODS["fine_tune_cot"].formats[student.architecture]
    question = "Ada has many coins. " * 30 + "How many are left now?"
    result = tokenize(
        student.tokenizer, form, student.architecture, [(question, "So 3. --> 3"), ("Short?", "3 " * 100)], max_prompt=40, max_completion=20
    )
    assert (result.cut_prompts, result.cut_completions) == (1, 1)
    assert len(result.rows[0].prompt) == 40
    assert len(result.rows[1].completion) == 20
    text = student.tokenizer.decode(result.rows[0].prompt, skip_special_tokens=True)
    assert text.replace(" ", "").endswith(form.prompt("How many are left now?").replace(" ", ""))


def test_completions_end_with_the_end_token_and_encoder_inputs_too(student):
    row = make_rows(student, 2)[0]
    assert row.completion[-1] == student.tokenizer.eos_token_id
    assert (row.prompt[-1] == student.tokenizer.eos_token_id) == (student.architecture == "encoder_decoder")


def test_what_the_tokenizer_cannot_represent_is_measured(tmp_path):
    form = METHODS["fine_tune"].formats["encoder_decoder"]
    student = load_student(str(save_t5(tmp_path)))
    plain = tokenize(student.tokenizer, form, "encoder_decoder", [("How many?", "3")], max_prompt=64, max_completion=64)
    braces = tokenize(student.tokenizer, form, "encoder_decoder", [(r"How many \frac{1}{2}?", "3")], max_prompt=64, max_completion=64)
    assert plain.unknown_share == 0
    unknown = sum(row.prompt.count(student.tokenizer.unk_token_id) for row in braces.rows)
    assert unknown >= 4
    assert braces.unknown_share == unknown / sum(len(row.prompt) + len(row.completion) for row in braces.rows)


def test_batches_are_padded_to_their_own_longest_row(student):
    rows = make_rows(student, 16)
    batch = collate(rows[:3], student.architecture, 0)
    longest = max(len(row.prompt) + (0 if student.architecture == "encoder_decoder" else len(row.completion)) for row in rows[:3])
    assert batch["input_ids"].shape[1] == longest


def test_every_epoch_sees_every_sample_once_in_its_own_order():
    per_epoch = steps_per_epoch(10, 4)
    assert per_epoch == 3
    epochs = [[i for step in range(e * per_epoch, (e + 1) * per_epoch) for i in batch_of_step(10, 4, 0, step)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    assert batch_of_step(10, 4, 0, 4) == batch_of_step(10, 4, 0, 4) != batch_of_step(10, 4, 1, 4)
    assert [len(batch) for batch in StepBatches(10, 4, 0, 5)] == [4, 4, 2, 4, 4]


@pytest.mark.parametrize(("epochs", "max_steps", "expected"), [(20, None, 60), (None, 7, 7), (2, 100, 6), (20, 7, 7)])
def test_the_first_of_epochs_and_steps_ends_training(epochs, max_steps, expected):
    assert count_steps(10, 4, epochs, max_steps) == expected


def test_a_folder_without_weights_is_named(tmp_path):
    folder = save_gpt2(tmp_path / "student")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FcotError, match=r"student\.path=.*weights"):
        load_student(str(folder))


def test_an_unreachable_hub_says_where_to_point(monkeypatch):
    with pytest.raises(FcotError, match=r"student\.path=FOLDER"):
        load_student("nobody/nothing")


@pytest.mark.parametrize("save", [save_gpt2, save_t5])
def test_a_folders_own_decoding_habits_are_not_ours(save, tmp_path):
    plain = load_student(str(save(tmp_path)))
    habits = {"num_beams": 4, "do_sample": True, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_new_tokens": 9}
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | habits))
    with_habits = load_student(str(tmp_path))
    rows = make_rows(plain, 6, with_completion=False)
    answers = [decode(student, rows, max_new_tokens=12, batch_size=6) for student in (plain, with_habits)]
    assert answers[0] == answers[1]
    assert not with_habits.model.generation_config.do_sample


def test_saved_students_load_in_transformers(student, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    student.model.save_pretrained(tmp_path)
    student.tokenizer.save_pretrained(tmp_path)
    kind = AutoModelForSeq2SeqLM if student.architecture == "encoder_decoder" else AutoModelForCausalLM
    again = kind.from_pretrained(tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(student.model.parameters(), again.parameters(), strict=True))
    text = "Rosa has 7 coins. --> 13"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == student.tokenizer(text)["input_ids"]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"]


def test_texts_at_the_position_limit_do_not_depend_on_the_batch(tmp_path):
    """A GPT-2 that never stops: each row writes until its own positions are used up, whatever stands beside it."""
    student = make_student("gpt2", tmp_path)
    student.model.config.n_positions = 160  # an untrained model ends nowhere: the limit is what stops it
    rows = make_rows(student, 12, with_completion=False)
    alone = decode(student, rows, max_new_tokens=1000, batch_size=1)
    assert decode(student, rows, max_new_tokens=1000, batch_size=12) == alone
    cut = [(row, answer) for row, answer in zip(rows, alone, strict=True) if not answer.complete]
    assert len({len(row.prompt) for row, _ in cut}) > 3
    assert all(len(row.prompt) + answer.n_tokens == 160 for row, answer in cut)


def test_dropout_is_off_while_decoding_and_on_again_afterwards(tmp_path):
    student = make_student("t5", tmp_path)
    student.model.train()
    rows = make_rows(student, 8, with_completion=False)
    answers = [decode(student, rows, max_new_tokens=16, batch_size=8) for _ in range(2)]
    assert answers[0] == answers[1]
    assert student.model.training
    batch = collate(make_rows(student, 8), student.architecture, 0)
    losses = {completion_loss(student.model, batch, student.architecture)[0].item() for _ in range(3)}
    assert len(losses) == 3, "dropout is on in training"


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"), [("constant", 0, [1, 1, 1]), ("constant", 4, [0.25, 0.75, 1]), ("linear", 4, [0.25, 0.6, 0.1])]
)
def test_the_learning_rate_follows_its_schedule(schedule, warmup, expected, tmp_path):
    """At steps 0, 2 and 9 of 10."""
    student = make_student("tiny_gpt2", tmp_path)
    module = StudentModule(student, lr=0.01, weight_decay=0.3, schedule=schedule, warmup_steps=warmup, n_steps=10)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"] / 0.01)
        optimizer.step()
        scheduler.step()
    assert [rates[0], rates[2], rates[9]] == pytest.approx(expected)


def test_training_clips_evaluates_on_time_and_depends_on_its_seed(tmp_path):
    def trained(seed, clip_norm=None, lr=0.01):
        student = make_student("tiny_gpt2", tmp_path)
        seen = []
        report = train(
            student, make_rows(student, 8), seed=seed, lr=lr, weight_decay=0.0, batch_size=3, n_steps=5, schedule="constant",
            warmup_steps=0, clip_norm=clip_norm, precision="32-true", evaluate_every=2,
            evaluate=lambda: {"training": student.model.training}, advance=seen.append, log_folder=None,
        )  # fmt: skip
        assert [entry["step"] for entry in report.history] == [2, 4, 5]
        assert all(entry["training"] for entry in report.history)
        assert (sum(seen), report.n_samples) == (5, 3 + 3 + 2 + 3 + 3)
        return torch.cat([parameter.flatten() for parameter in student.model.parameters()])

    first = trained(0)
    assert torch.equal(first, trained(0))
    assert not torch.equal(first, trained(1))
    assert not torch.equal(first, trained(0, clip_norm=1e-6))


@pytest.mark.parametrize(("save", "lost"), [(save_gpt2, "tokenizer"), (save_t5, "tokenizer")])
def test_a_folder_without_its_tokenizer_is_refused(save, lost, tmp_path):
    folder = save(tmp_path)
    for file in folder.glob(f"*{lost}*"):
        file.unlink()
    (folder / "vocab.json").unlink(missing_ok=True)
    with pytest.raises(FcotError, match="no tokenizer in it"):
        check_student(str(folder), None, 64, 64)


def test_too_few_positions_and_broken_weights_are_refused(tmp_path):
    folder = save_gpt2(tmp_path)
    with pytest.raises(FcotError, match="has 1024 positions"):
        check_student(str(folder), None, 512, 513)
    check_student(str(folder), None, 512, 512)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(FcotError, match=r"student\.path="):
        load_student(str(folder))
