"""Checkpoints that do not fill their model are rejected with the tensors' names, for students and local teachers."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from students import make_student, save_gpt2, save_t5
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from fcot.base.errors import FcotError
from fcot.decoding.models import not_finite
from fcot.llm.hf import HFModel
from fcot.llm.requests import Request
from fcot.runs.pipeline import execute
from fcot.student.loading import Lora, add_lora, load_student, save_student

SAVE = {"gpt2": save_gpt2, "t5": save_t5}
WEIGHT = {"gpt2": "transformer.h.1.attn.c_attn.weight", "t5": "encoder.block.1.layer.0.SelfAttention.q.weight"}


def changed(folder, change):
    """Change the tensors in a folder's file; returns the folder."""
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    return folder


def with_value(name, value):
    def change(tensors):
        tensors[name].view(-1)[3] = value
        return tensors

    return change


def without(missing):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != missing}


FAULTS = {
    "prefix": (lambda family: lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()}, "lacks .* module"),
    "layer": (
        lambda family: lambda tensors: {name: tensor for name, tensor in tensors.items() if name != WEIGHT[family]},
        "lacks 1 tensor",
    ),
    "shape": (lambda family: lambda tensors: tensors | {WEIGHT[family]: torch.ones(7, 5)}, r"7x5, the model needs"),
    "inf": (lambda family: with_value(WEIGHT[family], torch.inf), "not finite"),
    "nan": (lambda family: with_value(WEIGHT[family], torch.nan), "not finite"),
}


@pytest.fixture(params=["gpt2", "t5"])
def family(request):
    return request.param


@pytest.fixture(params=FAULTS)
def broken(request, family, tmp_path):
    """A folder with one fault, a pattern of its error message, and a tensor name in the message."""
    change, words = FAULTS[request.param]
    named = "h.0" if family == "gpt2" else "block.0"
    return changed(SAVE[family](tmp_path / "model"), change(family)), words, named if request.param == "prefix" else WEIGHT[family]


def test_a_student_that_its_checkpoint_does_not_fill_is_rejected(broken):
    folder, words, tensor = broken
    with pytest.raises(FcotError, match=words) as error:
        load_student(str(folder))
    assert tensor in str(error.value)
    assert f"student.path={folder}" in str(error.value)


def test_a_teacher_that_its_checkpoint_does_not_fill_is_rejected(broken):
    folder, words, tensor = broken
    teacher = HFModel(str(folder), None, "m", False, 0.0, 4, 1)
    with pytest.raises(FcotError, match=words) as error:
        asyncio.run(teacher.generate(Request("Why?", 4), 1, 0))
    assert tensor in str(error.value)
    assert f"teacher.path={folder}" in str(error.value)


def test_extra_tensors_are_a_warning(family, tmp_path, capsys):
    folder = changed(SAVE[family](tmp_path), lambda tensors: tensors | {"value_head.weight": torch.ones(3)})
    load_student(str(folder))
    stderr = capsys.readouterr().err
    assert "does not use 1 tensor (value_head.weight)" in stderr
    assert "warning" in stderr


def same_weights(first, second):
    first_weights, second_weights = first.state_dict(), second.state_dict()
    return first_weights.keys() == second_weights.keys() and all(
        torch.equal(first_weights[name], second_weights[name]) for name in first_weights
    )


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "lm_head.weight"])
def test_t5_may_have_another_name_for_its_tied_embeddings(name, tmp_path):
    whole = load_student(str(save_t5(tmp_path))).model
    renamed = changed(tmp_path, lambda tensors: {name if key == "shared.weight" else key: tensor for key, tensor in tensors.items()})
    assert same_weights(load_student(str(renamed)).model, whole)


def test_t5_without_any_embeddings_is_rejected(tmp_path):
    folder = changed(save_t5(tmp_path), without("shared.weight"))
    with pytest.raises(FcotError, match=r"lacks .*shared\.weight"):
        load_student(str(folder))


@pytest.mark.parametrize("lost", [False, True])
def test_a_t5_whose_config_has_its_own_head_needs_it(lost, tmp_path):
    save_t5(tmp_path, gated=True)
    config = T5Config.from_pretrained(tmp_path)
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))  # as on the hub
    if lost:
        changed(tmp_path, without("lm_head.weight"))
        with pytest.raises(FcotError, match=r"lacks 1 tensor \(lm_head\.weight\)"):
            load_student(str(tmp_path))
    else:
        assert torch.equal(load_student(str(tmp_path)).model.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("form", ["shards", "bin", "bfloat16", "no prefix"])
def test_checkpoints_in_other_formats_load(form, family, tmp_path):
    folder = SAVE[family](tmp_path)
    whole = load_student(str(folder)).model
    kind = AutoModelForCausalLM if family == "gpt2" else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder)
    if form == "no prefix":
        changed(folder, lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()})
    else:
        (folder / "model.safetensors").unlink()
    if form == "shards":
        model.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif form == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    elif form == "bfloat16":
        model.bfloat16().save_pretrained(folder)
        whole = whole.bfloat16().float()
    assert same_weights(load_student(str(folder)).model, whole)


def test_a_checkpoint_with_a_missing_shard_is_rejected(tmp_path):
    folder = save_gpt2(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    min(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(FcotError, match=r"student\.path="):
        load_student(str(folder))


def test_a_folder_with_an_adapter_is_rejected(tmp_path):
    folder = save_gpt2(tmp_path / "base")
    adapted = add_lora(load_student(str(folder)), Lora(2, 8.0)).model
    adapted.save_pretrained(tmp_path / "adapter")
    shutil.copytree(folder, tmp_path / "both")
    adapted.save_pretrained(tmp_path / "both")
    for name in ("adapter", "both"):
        source = tmp_path / name
        for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            shutil.copy(folder / file, source / file)
        with pytest.raises(FcotError, match="holds an adapter, not a whole model"):
            load_student(str(source))


def test_a_student_whose_merged_weights_are_not_finite_is_not_saved(tmp_path):
    student = add_lora(make_student("gpt2"), Lora(2, 8.0))
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if "lora_" in name:
                parameter.fill_(1e30)  # finite, but the merged weights are not
    with pytest.raises(FcotError, match="not finite"):
        save_student(student, tmp_path / "student")
    assert not (tmp_path / "student" / "model.safetensors").exists()


def test_the_first_tensor_that_is_not_finite_is_named():
    tensors = {
        "a": torch.ones(2),
        "n": torch.tensor([3]),
        "none": torch.zeros(0),
        "huge": torch.full((2,), 1e38),
        "b": torch.ones(2).half(),
    }
    assert not_finite(tensors) is None
    assert not_finite(tensors | {"c": torch.tensor([1.0, -torch.inf]), "d": torch.tensor(torch.nan)}) == "c"
    assert not_finite({"b": torch.tensor([torch.nan]).bfloat16()}) == "b"


def test_a_student_in_a_folder_is_loaded_before_the_teacher_is_paid(tmp_path, make_run):
    folder = changed(save_gpt2(tmp_path / "model"), FAULTS["layer"][0]("gpt2"))
    run = make_run(
        tmp_path, "dataset.n_problems=30", "student=gpt2", f"student.path={folder}", "student.max_prompt_tokens=64",
        "student.max_completion_tokens=64", "student.max_new_tokens=64",
    )  # fmt: skip
    with pytest.raises(FcotError, match="lacks 1 tensor"):
        execute(run, "")
    assert not (tmp_path / "teacher").exists()
    assert not list(run.directory.path.glob("stages/*.json"))
