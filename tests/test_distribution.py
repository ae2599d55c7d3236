"""Learning a teacher's token distributions: the divergences by hand, and a run from the teacher's folder to a student."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from students import make_rows, make_student
from transformers import AutoTokenizer

from fcot.base.errors import FcotError
from fcot.objectives.completion import CompletionLoss
from fcot.objectives.distribution import DistributionLoss, check_vocabulary, coarsened, divergence, own_contexts
from fcot.student.data import Layout, TrainingData
from fcot.student.forward import Forward
from fcot.student.tokenization import TokenizedSample

KINDS = ("forward_kl", "reverse_kl", "jsd")


def log_distributions(n, tokens, seed):
    torch.manual_seed(seed)
    return (3 * torch.randn(n, tokens, dtype=torch.float64)).log_softmax(-1)


def by_hand(student, teacher, kind, beta):
    """In float64, with probabilities, token by token."""
    q, p = student.exp(), teacher.exp()
    if kind == "forward_kl":
        return (p * (p / q).log()).sum(-1)
    if kind == "reverse_kl":
        return (q * (q / p).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_divergences_and_their_gradients_are_those_of_the_formulas(kind, beta):
    logits = log_distributions(7, 11, 0).requires_grad_()
    teacher = log_distributions(7, 11, 1)
    expected = by_hand(logits.log_softmax(-1), teacher, kind, beta)
    (slope,) = torch.autograd.grad(expected.sum(), logits)
    found = divergence(logits.log_softmax(-1), teacher, kind, beta)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), logits)[0], slope)
    assert (found > 0).all()
    assert divergence(teacher, teacher, kind, beta).abs().max() < 1e-12


def test_the_coarse_divergence_is_a_lower_bound_and_equals_the_full_one_over_all_tokens():
    student, teacher = log_distributions(200, 30, 2), log_distributions(200, 30, 3)
    full = divergence(student, teacher, "forward_kl")
    before = torch.zeros(200, dtype=torch.float64)
    for k in (1, 3, 10, 29, 30):
        top = teacher.topk(k).indices
        coarse = divergence(coarsened(student, top), coarsened(teacher, top), "forward_kl")
        assert (coarse >= before - 1e-12).all()
        assert (coarse <= full + 1e-12).all()
        before = coarse
    torch.testing.assert_close(before, full)


def objective_of(student, teacher, **options):
    layout = Layout(
        student.architecture,
        student.tokenizer.pad_token_id,
        getattr(student.model.config, "decoder_start_token_id", None),
        packing=options.pop("packing", False),
    )
    completion = CompletionLoss(make_rows(student, 6), layout)
    return DistributionLoss(completion, teacher, check_vocabulary(student.tokenizer, teacher.tokenizer, "x"), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "packing"), [("gpt2", False), ("gpt2", True), ("t5", False)])
def test_a_student_that_is_the_teacher_has_no_divergence(name, packing, kind):
    student = make_student(name)
    student.model.eval()
    objective = objective_of(student, copy.deepcopy(student), share=1.0, divergence=kind, packing=packing)
    if packing:
        from fcot.student.attention import allow_packing

        allow_packing(student.model)
    loss = objective.loss(Forward(student.model), objective.collate(range(6), 0))
    n = objective.denominator(range(6))
    assert abs(loss.total.item() / n) < 1e-6
    assert float(loss.watched["overlap"]) / n == pytest.approx(1)
    assert float(loss.watched["student_mass"]) == pytest.approx(float(loss.watched["teacher_mass"]), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_sum_does_not_depend_on_how_samples_are_divided(family):
    student, teacher = make_student("gpt2"), make_student(family)
    objective = objective_of(student, teacher, share=0.5, top_k=5)
    student.model.eval()
    whole = objective.loss(Forward(student.model), objective.collate(range(6), 0)).total
    parts = sum(objective.loss(Forward(student.model), objective.collate(ids, 0)).total for ids in ([0, 4], [1], [2, 3, 5]))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_teacher_can_read_its_own_prompt(family):
    student, teacher = make_student("gpt2"), make_student(family)
    plain = objective_of(student, teacher, share=1.0)
    rows, vocabulary = plain.completion.rows, len(student.tokenizer)
    contexts = {tuple(row.prompt): [*row.prompt[::-1], 7, 8] for row in rows}
    other = DistributionLoss(plain.completion, teacher, vocabulary, 1.0, contexts=contexts)
    total = 0.0
    for row in rows:
        alone = plain.completion.layout.batch([row])
        read = plain._layout.batch([replace(row, prompt=contexts[tuple(row.prompt)])])
        logs = [Forward(model.model)(part).double().log_softmax(-1)[:, :vocabulary] for model, part in ((student, alone), (teacher, read))]
        total += by_hand(*logs, "forward_kl", 0.5).sum().item()
    assert other.loss(Forward(student.model), other.collate(range(6), 0)).total.item() == pytest.approx(total, rel=1e-4)
    same = DistributionLoss(plain.completion, teacher, vocabulary, 1.0, contexts={prompt: list(prompt) for prompt in contexts})
    expected = plain.loss(Forward(student.model), plain.collate(range(6), 0)).total.item()
    assert total != pytest.approx(expected, rel=1e-3)
    assert same.loss(Forward(student.model), same.collate(range(6), 0)).total.item() == pytest.approx(expected, rel=1e-6)


def test_a_teachers_own_prompt_excludes_weights_of_prompts_and_questions_that_are_cut_to_the_same():
    student = make_student("gpt2")
    layout = Layout("decoder", student.tokenizer.pad_token_id, prompt_weight=0.1)
    with pytest.raises(FcotError, match=r"prompt_loss_weight.*not with objective.context=teacher"):
        DistributionLoss(CompletionLoss(make_rows(student, 2), layout), make_student("llama"), 350, 0.5, contexts={})
    rows = [TokenizedSample([1, 2], [3]), TokenizedSample([1, 2], [4])]
    data = TrainingData(student, None, [], rows, layout, teacher_prompts=lambda _: [[5, 1, 2], [6, 1, 2]])
    with pytest.raises(FcotError, match=r"student.max_prompt_tokens cuts: raise it"):
        own_contexts(data, student)


def test_padded_columns_of_a_wider_teacher_do_not_count():
    student, teacher = make_student("gpt2"), make_student("llama")
    student.model.eval()
    narrow = objective_of(student, teacher, share=1.0)
    part = narrow.collate(range(6), 0)
    expected = narrow.loss(Forward(student.model), part).total.item()
    wider = copy.deepcopy(teacher)
    wider.model.resize_token_embeddings(len(wider.tokenizer) + 13)
    found = objective_of(student, wider, share=1.0).loss(Forward(student.model), part).total.item()
    assert math.isclose(found, expected, rel_tol=1e-5)


def test_padded_columns_of_a_wider_student_do_not_count():
    student, teacher = make_student("gpt2"), make_student("llama")
    narrow = objective_of(student, teacher, share=1.0, top_k=20)
    part = narrow.collate(range(6), 0)
    expected = narrow.loss(Forward(student.model), part).total.item()
    wider = copy.deepcopy(student)
    wider.model.resize_token_embeddings(len(wider.tokenizer) + 13)
    objective = objective_of(wider, teacher, share=1.0, top_k=20)
    assert objective.loss(Forward(wider.model), part).total.item() == pytest.approx(expected, rel=1e-5)


def test_a_teacher_with_other_tokens_is_rejected(tmp_path):
    student, teacher = make_student("gpt2").tokenizer, make_student("gpt2").tokenizer
    teacher.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_tokens(["<new>"])
    with pytest.raises(FcotError, match=r"objective.teacher=there: its tokens are not the student's .*'<new>' is number"):
        check_vocabulary(student, other, "there")


SMALL = (
    "dataset.n_problems=60", "diversity=2", "trainer.max_steps=30", "trainer.evaluate_every_steps=15", "trainer.warmup_steps=2",
    "student.layers=1", "student.vocab_size=400", "student.max_new_tokens=40",
)  # fmt: skip


@pytest.mark.parametrize("student", ["tiny_gpt2", "tiny_t5"])
def test_a_narrow_student_learns_from_a_wide_one(run_fcot, tmp_path, student):
    wide = run_fcot(*SMALL, f"student={student}", "student.width=64")
    assert wide.returncode == 0, wide.stderr
    (teacher,) = tmp_path.glob("outputs/runs/*/student")
    options = ("objective=distribution", f"objective.teacher={teacher}", f"student.tokenizer={teacher}", "objective.top_k=20")
    narrow = run_fcot(*SMALL, f"student={student}", "student.width=32", *options, "logger=csv")
    assert narrow.returncode == 0, narrow.stderr
    (run,) = (path for path in tmp_path.glob("outputs/runs/*") if path != teacher.parent)
    log = (run / "logs/metrics.csv").read_text().splitlines()
    first, last = (dict(zip(log[0].split(","), line.split(","), strict=True)) for line in (log[1], log[-1]))
    assert float(last["divergence"]) < float(first["divergence"])
    assert 0 < float(last["student_mass"]) <= 1
    assert json.loads((run / "metrics.json").read_text())["n_steps"] == 30
