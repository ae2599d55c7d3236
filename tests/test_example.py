"""The readable example and the pipeline implement the same method: same samples, same losses, same answers."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from students import make_student, save_gpt2
from trainings import recipe_of, student_of

from fcot.curation import filters
from fcot.evaluation import statistics
from fcot.methods.table import METHODS
from fcot.objectives.completion import CompletionLoss
from fcot.prompts.answers import AnswerRule
from fcot.student import training
from fcot.student.decoding import DecodingPrompt
from fcot.student.decoding import decode as decode_by_pipeline
from fcot.student.tokenization import encode_prompts, tokenize
from fcot.tasks.toy import TOY_TASKS, make_problems

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import fine_tune_cot as example

STEPS = 20
PROBLEMS, DIVERSITY, SEED = 20, 2, 3
RULE = AnswerRule("number", numbers="paper")
FORMAT = METHODS["fine_tune_cot"].formats["decoder"]


@pytest.fixture(scope="module")
def completions():
    """Rows as the example reads them: some answers are wrong, rationales are cut to different lengths, the sixth rationale is blank."""
    rows = example.toy_completions(PROBLEMS, DIVERSITY, error_rate=0.3, seed=SEED)
    cut = [" \n" if number == 5 else row["reasoning_completion"][: 10 + 4 * number] for number, row in enumerate(rows)]
    return [row | {"reasoning_completion": text} for row, text in zip(rows, cut, strict=True)]


def rows_of_pipeline(student, completions):
    """The pipeline's way from raw completions to token ids: its curation, its format, its tokenization."""
    problems = make_problems(TOY_TASKS["toy_arithmetic"], PROBLEMS, SEED)
    raw = [
        filters.Completion(number // DIVERSITY, number % DIVERSITY, row["reasoning_completion"], row["completion"])
        for number, row in enumerate(completions)
    ]
    verdicts = filters.curate(
        raw, dict(enumerate(problems)), RULE, lambda completion, rule: rule.read(completion.answer_text), filters.Rules(["answer"])
    )
    kept = [verdict for verdict in verdicts if verdict.kept]
    texts = [(problems[verdict.sample_index].question, FORMAT.completion(verdict.answer, verdict.rationale)) for verdict in kept]
    return tokenize(student, FORMAT, texts, max_prompt=256, max_completion=256)


@pytest.mark.parametrize("options", [{}, {"micro_batches": 3, "packing": True}], ids=str)
def test_the_losses_equal_the_pipelines(options, completions, tmp_path, monkeypatch):
    """20 optimizer steps from the same weights with the same samples per step; the example takes only their order from the pipeline."""
    recipe = recipe_of(max_steps=STEPS, batch_size=6, **options)
    student = student_of("gpt2")
    samples = example.encode(student.tokenizer, example.curate(completions))

    trained = student_of("gpt2")
    rows = rows_of_pipeline(trained, completions)
    assert len(completions) * 0.5 < len(rows) < len(completions) - 1, "curation rejects some completions"
    assert [ids.tolist() for ids, _ in samples] == [[*row.prompt, *row.completion] for row in rows]

    layout, sampler, n_steps = training.plan(trained, rows, recipe, SEED)
    assert n_steps == STEPS > 3 * len(rows) / recipe.batch_size, "more than three epochs"
    monkeypatch.setattr(training, "_LOG_EVERY", 1)
    training.train(trained, rows, [CompletionLoss(rows, layout)], recipe, training.Hooks(lambda _: {}), seed=SEED, log_folder=tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        expected = [float(row["train_loss"]) for row in csv.DictReader(file)]

    batches = [sampler.step(step).tolist() for step in range(STEPS)]
    losses = example.train(student.model, samples, batches, recipe.lr, recipe.warmup_steps)
    assert len(losses) == len(expected) == STEPS
    assert losses[-1] < losses[0] - 0.3, "the student learns"
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_the_answers_equal_the_pipelines(completions):
    """A random student, which generates up to the limit: padding on the left changes no answer."""
    student = make_student("gpt2")
    questions = sorted({row["question"] for row in completions})
    questions = [question[-20 - 5 * place :] for place, question in enumerate(questions)]
    encoded, _ = encode_prompts(student, [FORMAT.prompt(question) for question in questions], 256)
    expected = [answer.text for answer in decode_by_pipeline(student, [DecodingPrompt(ids, 12) for ids in encoded], max_tokens=400)]
    assert len(set(expected)) > 5
    assert example.decode(student.model, student.tokenizer, questions, 12, batch_size=8) == expected

    for text in (
        "1 + 2 = 3. --> 3",
        "3 --> 1,234.50 or 5",
        "--> 1 --> -2",
        "4 --> 1 --> ?",
        "1 and 2",
        "0.66666666666666667",
        "nothing",
        *expected,
    ):
        answer = FORMAT.parse(text, RULE)
        assert example.read_answer(text) == pytest.approx(float("nan") if answer is None else float(answer), nan_ok=True), text
    for n_correct, n in ((0, 9), (7, 9), (398, 405), (405, 405)):
        assert example.wilson_interval(n_correct, n) == pytest.approx(statistics.wilson_interval(n_correct, n), abs=1e-6)


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_example_runs(pretrained, completions, tmp_path, capsys):
    arguments = ["--problems", str(PROBLEMS), "--epochs", "1", "--batch-size", "8", "--max-new-tokens", "12"]
    if pretrained:
        file = tmp_path / "completions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in completions), encoding="utf-8")
        arguments += ["--completions", str(file), "--model", str(save_gpt2(tmp_path / "student"))]
    example.main(arguments)
    output = capsys.readouterr().out
    n_train = 14 * (DIVERSITY if pretrained else 4)
    assert f"of {n_train} completions (" in output
    assert "### " in output
    assert "--> " in output
    assert re.search(r"accuracy [\d.]+% \(95 % interval [\d.]+% to [\d.]+%\), \d of 6 test problems", output)
