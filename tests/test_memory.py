"""The memory that a training needs, computed from shapes."""

from __future__ import annotations

import weakref

import pytest
import torch
from students import make_rows, make_student, save_gpt2, save_t5
from test_on_policy import layout_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import T5ForConditionalGeneration

from fcot.base import machine
from fcot.estimate import memory as stage
from fcot.estimate.dry_run import estimate
from fcot.objectives.completion import CompletionLoss
from fcot.objectives.distribution import DistributionLoss
from fcot.student import memory
from fcot.student.forward import Forward
from fcot.student.loading import Lora, load_student
from fcot.student.memory import free_memory, teacher_memory, training_memory

SAVED = {"gpt2": save_gpt2, "t5": save_t5}
SHAPE = {"rows": 4, "prompt": 24, "completion": 40}


@pytest.fixture(params=SAVED)
def folder(request, tmp_path):
    SAVED[request.param](tmp_path / "model")
    return str(tmp_path / "model")


def saved_bytes(folder, *, rows, prompt, completion):
    """Bytes that autograd keeps for the backward pass, measured on real tensors."""
    student, kept = load_student(folder), {}
    owned = {parameter.data_ptr() for parameter in student.model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in owned:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hook = student.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][:1, :1],))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        student.model.train()(**memory._inputs(student, rows, prompt, completion), use_cache=False)
    hook.remove()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_activations_are_what_autograd_keeps(folder):
    estimated = training_memory(folder, None, **SHAPE)
    vocabulary = load_student(folder).model.get_output_embeddings().weight.shape[0]
    logits = 4 * 3 * SHAPE["rows"] * SHAPE["completion"] * vocabulary
    assert estimated.activations - logits == pytest.approx(saved_bytes(folder, **SHAPE), rel=0.05)


def test_state_is_parameters_gradients_and_adamws_two_moments(folder):
    n_parameters = sum(parameter.numel() for parameter in load_student(folder).model.parameters())
    assert training_memory(folder, None, **SHAPE).state == 16 * n_parameters
    assert training_memory(folder, None, **SHAPE, ranks=2, sharded=True).state == 8 * n_parameters
    assert training_memory(folder, None, **SHAPE, ranks=2).state == 20 * n_parameters


def test_the_output_head_of_flan_t5_counts_although_its_configuration_ties_it(tmp_path):
    folder = save_t5(tmp_path / "model", gated=True)
    model = T5ForConditionalGeneration.from_pretrained(folder)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    model.save_pretrained(folder)
    n_parameters = sum(parameter.numel() for parameter in load_student(str(folder)).model.parameters())
    assert n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert training_memory(str(folder), None, **SHAPE).state == 16 * n_parameters
    assert teacher_memory(str(folder), 0, "forward_kl") == 4 * n_parameters


def test_lora_checkpointing_and_small_batches_need_less_memory(folder):
    plain = training_memory(folder, None, **SHAPE)
    adapters = training_memory(folder, None, **SHAPE, lora=Lora(4, 8.0))
    assert adapters.state < 0.5 * plain.state
    checkpointed = training_memory(folder, None, **SHAPE, gradient_checkpointing=True)
    assert checkpointed.activations < plain.activations
    assert training_memory(folder, None, rows=2, prompt=24, completion=40).activations < 0.6 * plain.activations


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors that exist, and their largest sum."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.peak = max(self.peak, sum(self.sizes.values()))
                weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        return result


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_teachers_part_is_its_weights_and_the_logits_of_the_divergence(name, kind, tmp_path):
    student = make_student(name)
    SAVED[name](tmp_path)
    completion = CompletionLoss(make_rows(student, 16), layout_of(student))
    n_targets = sum(len(row.completion) for row in completion.rows)
    loss = DistributionLoss(completion, make_student("llama"), len(student.tokenizer), 0.5, kind)
    peaks = []
    for objective in (completion, loss):
        part, forward = objective.collate(range(16), 0), Forward(student.model)
        with _Live() as live:
            objective.loss(forward, part).total.backward()
        forward.remove()
        peaks.append(live.peak)
    per_logit = (teacher_memory(str(tmp_path), 2 * n_targets, kind) - teacher_memory(str(tmp_path), n_targets, kind)) / n_targets
    vocabulary = load_student(str(tmp_path)).model.get_output_embeddings().weight.shape[0]
    measured = (peaks[1] - peaks[0]) / n_targets / len(student.tokenizer)
    assert per_logit / vocabulary == pytest.approx(measured, rel=0.35)
    weights = sum(parameter.numel() for parameter in load_student(str(tmp_path)).model.parameters())
    assert teacher_memory(str(tmp_path), 0, kind) == 4 * weights


def test_a_run_notes_the_memory_it_needs_and_warns_if_less_is_free(folder, make_run, tmp_path, monkeypatch):
    run = make_run(tmp_path, "student=causal" if "gpt2" in str(folder) else "student=t5_small", f"student.path={folder}", *SMALL)
    monkeypatch.setattr(stage, "free_memory", lambda: 1e12)
    note = stage.memory_note(run)
    assert note is not None
    assert note.startswith("memory to train: about 0.")
    assert note in estimate(run, {}).notes
    monkeypatch.setattr(stage, "free_memory", lambda: 1e6)
    assert stage.memory_note(run).startswith("warning: memory to train: about 0.")
    assert "trainer.micro_batches=4" in stage.memory_note(run)


SMALL = ("dataset.n_problems=60", "student.max_prompt_tokens=64", "student.max_completion_tokens=64")


@pytest.mark.parametrize("overrides", [["method=zero_shot"], ["until=curate"], []])
def test_there_is_no_note_without_a_student_of_known_size_to_train(make_run, tmp_path, overrides):
    assert stage.memory_note(make_run(tmp_path, "dataset.n_problems=60", *overrides)) is None


def test_free_memory_is_read_from_the_machine_and_its_control_group(tmp_path):
    free = free_memory()
    assert free is None or free > 1e8
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert machine._free_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("12\n")
    assert machine._free_in_group(tmp_path) == 7
    assert machine._available(tmp_path / "missing") is None
