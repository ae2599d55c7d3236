"""The identity of runs: every option counts or is declared neutral, no run is renamed by accident, and the machine does not matter.

``tests/run_ids.json`` is frozen: a changed id means that users' finished runs would be run again. If code changed a result, increase the
stage's version in ``fcot/stages/table.py`` and rewrite the table: ``python tests/test_identity.py``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import typing
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from pathlib import Path

import pytest
import torch
from identities import run_of, write_files
from omegaconf import OmegaConf
from students import save_gpt2

from fcot.base import files as base_files
from fcot.base.errors import FcotError
from fcot.base.fields import absent_at, counted, neutral, part_of, resolved
from fcot.config.checks import faults_of
from fcot.config.schema import SCHEMAS, Config
from fcot.curation import filters
from fcot.curation.config import CurationConfig
from fcot.runs.pipeline import execute
from fcot.runs.run import resolve
from fcot.sweeps.plan import make_plan

FROZEN = Path(__file__).parent / "run_ids.json"
TOY = ("dataset.n_problems=40",)
CUSTOM = ("dataset=custom", "dataset.path=FILES/rows.jsonl", "dataset.answer_type=number", "method=fine_tune")
LETTERS = (*CUSTOM[:2], "method=fine_tune", "dataset.answer_column=letter", "dataset.answer_type=choice", "dataset.choices=ABCD")
SERVER = (*TOY, "teacher=openai", "teacher.model=m", "teacher.base_url=http://127.0.0.1:9/v1", "prompt=zero_shot_cot")
HF = (*TOY, "teacher=hf", "teacher.model=owner/name")
API = (*TOY, "student=openai", "student.model=m", "student.base_url=http://127.0.0.1:9/v1")
ITSELF = (*TOY, "student=teacher", "method=zero_shot_cot")
GPT2 = (*TOY, "student=gpt2")
TAILORED = (*GPT2, "method=tailored")
DPO, SIMPO = (("method.reflection.objective=dpo",), ("method.reflection.objective=simpo",))
CRITIQUE = ("method.feedback.form=critique",)
SELF = ("method.feedback.source=self",)
ON_POLICY = (*TOY, "method=on_policy", "objective.teacher=FILES/model1")
TRAINED = ("student=causal", "student.path=FILES/model1")
SHOTS = (*TOY, "prompt=few_shot_cot", "prompt.exemplars=FILES/exemplars1.jsonl")
DRAWN = "student.self_consistency=5"
OTHER_FEEDBACK = 'method.feedback.template="{question} {mistakes} {hint}"'

# For each schema, a run that reads its options.
USES = {
    ("dataset", "published"): ("dataset=multiarith", *CUSTOM[1:2], "method=fine_tune"),
    ("dataset", "toy"): TOY,
    ("dataset", "custom"): CUSTOM,
    ("split-mode", "split_mode"): CUSTOM,
    ("teacher", "oracle"): TOY,
    ("teacher", "replay"): (*CUSTOM[:3], "teacher=replay", "teacher.path=FILES/replay1.json", "diversity=2"),
    ("teacher", "openai"): SERVER,
    ("teacher", "hf"): HF,
    ("teacher", "function"): (*TOY, "teacher=function", "teacher.function=identities.a_teacher", "teacher.model_id=m"),
    ("prompt", "prompt"): TOY,
    ("curation", "curation"): TOY,
    ("method", "method"): (*GPT2, "method=zero_shot_cot"),
    ("method", "tailored"): TAILORED,
    ("method", "on_policy"): ON_POLICY,
    ("student", "pretrained"): GPT2,
    ("student", "tiny"): TOY,
    ("student", "api"): API,
    ("student", "teacher"): ITSELF,
    ("trainer", "trainer"): TOY,
    ("objective", "preference"): (*TOY, "objective=preference"),
    ("objective", "distribution"): (*TOY, "objective=distribution", "objective.teacher=FILES/model1"),
}
TOP = ("teacher.tokenizer=FILES/tokenizer1", "teacher.top_logprobs=5")
# Options that the run above does not read, or whose changed value cannot be derived from the type: the run that reads it, and the change.
CHANGES = {
    ("dataset", "published"): {
        "name": ((), ("dataset.name=addsub",)), "path": ((), ("dataset.path=FILES/fewer.jsonl",)),
    },
    ("dataset", "toy"): {"name": (("method=fine_tune",), ("dataset.name=toy_coin_flip",))},
    ("dataset", "custom"): {
        "path": ((), ("dataset.path=FILES/fewer.jsonl",)), "answer_type": ((), ("dataset.answer_type=text",)),
        "choices": (LETTERS, ("dataset.choices=ABCDE",)),
        "option_columns": (LETTERS, ("dataset.option_columns=[ticket,price,side,why]",)),
        "question_column": ((), ("dataset.question_column=other",)), "answer_column": ((), ("dataset.answer_column=wrong",)),
        "rationale_column": (
            ("method=few_shot_cot", "prompt=few_shot_cot", "prompt.exemplars=train"), ("dataset.rationale_column=why",),
        ),
        "template_column": (("split-mode=template",), ("dataset.template_column=group",)),
        "index_column": ((), ("dataset.index_column=ticket",)), "group_column": ((), ("dataset.group_column=group",)),
        "split_column": ((), ("dataset.split_column=side",)),
        "decimal": (("dataset.answer_column=price",), ("dataset.decimal=comma",)),
        "normalize_answers": (("dataset.answer_column=price",), ("dataset.normalize_answers=true",)),
        "on_invalid": ((), ("dataset.on_invalid=skip",)),
    },
    ("split-mode", "split_mode"): {
        "name": ((), ("split-mode=template",)), "train_fraction": ((), ("split_mode.train_fraction=0.5",)),
        "path": (("split-mode=file", "split_mode.path=FILES/split1.json"), ("split_mode.path=FILES/split2.json",)),
        "templates": (("split-mode=template", "split_mode.templates=FILES/templates1.json"),
                      ("split_mode.templates=FILES/templates2.json",)),
        "validation_fraction": ((), ("split_mode.validation_fraction=0.9",)),
    },
    ("teacher", "oracle"): {"error_rate": ((), ("teacher.error_rate=0.2",))},
    ("teacher", "replay"): {"path": ((), ("teacher.path=FILES/replay2.json",))},
    ("teacher", "openai"): {
        "endpoint": ((), ("teacher.endpoint=completions",)), "base_url": ((), ("teacher.base_url=http://127.0.0.1:8/v1",)),
        "api_key_env": ((), ("teacher.api_key_env=none",)), "headers": ((), ("teacher.headers={X-Team: PATH}",)),
        "top_logprobs": (("teacher.tokenizer=FILES/tokenizer1",), ("teacher.top_logprobs=5",)),
        "score_stored": (TOP, ("teacher.score_stored=true",)),
        "parameters": ((), ("teacher.parameters={top_p: 0.5}",)),
        "max_tokens_parameter": ((), ("teacher.max_tokens_parameter=max_completion_tokens",)),
        "prices": ((), ("teacher.prices=FILES/prices.yaml",)),
        "budget_usd": (("teacher.prices=FILES/prices.yaml",), ("teacher.budget_usd=5",)),
    },
    ("teacher", "function"): {
        "function": ((), ("teacher.function=identities.another_teacher",)), "model_id": ((), ("teacher.model_id=other",)),
        "endpoint": (("prompt=zero_shot_cot",), ("teacher.endpoint=completions",)),
        "parameters": ((), ("teacher.parameters={top_p: 0.5}",)),
    },
    ("teacher", "hf"): {
        "path": ((), ("teacher.path=FILES/model1",)), "endpoint": ((), ("teacher.endpoint=chat",)),
        "dtype": ((), ("teacher.dtype=float16",)),
    },
    ("prompt", "prompt"): {
        "template": ((), ("prompt.template=\"Q: {question}\"",)),
        "path": (("prompt=custom", "prompt.path=FILES/prompt1.txt"), ("prompt.path=FILES/prompt2.txt",)),
        "answer_triggers": ((), ("prompt.answer_triggers.number=So",)),
        "exemplars": (SHOTS, ("prompt.exemplars=FILES/exemplars2.jsonl",)), "n_exemplars": (SHOTS, ("prompt.n_exemplars=2",)),
        "numbers": ((), ("prompt.numbers=paper",)), "thinking": ((), ("prompt.thinking=keep",)), "stop": ((), ("prompt.stop=[x]",)),
        "system": (SERVER, ("prompt.system=Be brief.",)),
    },
    ("curation", "curation"): {
        "filters": ((), ("curation.filters=[answer,duplicate]",)), "labels": ((), ("curation.labels=vote_all",)),
        "max_words": (("curation=strict",), ("curation.max_words=9",)), "max_repeats": (("curation=strict",), ("curation.max_repeats=9",)),
        "golden": (("curation=golden", "curation.golden=FILES/golden1.json"), ("curation.golden=FILES/golden2.json",)),
        "judge": ((), ("curation.judge=record",)), "judge_tokens": (("curation.judge=record",), ("curation.judge_tokens=99",)),
        "judge_path": (("curation.judge=record",), ("curation.judge_path=FILES/judge1.txt",)),
        "max_per_problem": ((), ("curation.max_per_problem=2",)),
        "choose_by": (("curation.max_per_problem=2",), ("curation.choose_by=rsr",)),
        "settings": (("curation.filters=[answer,identities.short]",), ("curation.settings={min_words: 4}",)),
        "match_golden": (("curation=golden", "curation.golden=FILES/golden1.json"), ("curation.match_golden=true",)),
    },
    ("method", "method"): {"name": ((), ("method=zero_shot",))},
    ("method", "tailored"): {
        "name": ((), ("method=fine_tune_cot",)), "start": ((), ("method.start=pretrained",)),
        "round_weights": ((), ("method.round_weights=[1,1,2]",)), "feedback.source": ((), ("method.feedback.source=plain",)),
        "replay": ((), ("method.replay=0.5",)), "feedback.form": ((), ("method.feedback.form=rewrite",)),
        "feedback.retries": (CRITIQUE, ("method.feedback.retries=2",)),
        "feedback.critique_template": (CRITIQUE, (OTHER_FEEDBACK.replace("template", "critique_template"),)),
        "feedback.rewrite_template": (("method.feedback.form=rewrite",),
                                      ('method.feedback.rewrite_template="{question} {earlier} {mistakes} {hint}"',)),
        "sampler.objective": (SELF, ("method.sampler.objective=dpo",)),
        "sampler.gamma": ((*SELF, "method.sampler.objective=simpo"), ("method.sampler.gamma=1",)),
        **{f"sampler.{name}": ((*SELF, "method.sampler.objective=dpo"), (f"method.sampler.{name}={value}",)) for name, value in (
            ("steps", 9), ("lr", 0.1), ("beta", 0.2), ("nll", 1), ("max_tokens", 9), ("samples", 9), ("temperature", 2), ("top_k", 9),
        )},
        **{f"own.{name}": (SELF, (f"method.own.{name}={value}",))
           for name, value in (("arithmetic", "true"), ("distinct_equations", "true"), ("max_similarity", 0.7))},
        "feedback.template": ((), (OTHER_FEEDBACK,)),
        "feedback.path": (("method.feedback.path=FILES/feedback1.txt",), ("method.feedback.path=FILES/feedback2.txt",)),
        "reflection.representation": ((), ("method.reflection.representation=mean",)),
        "reflection.objective": ((), ("method.reflection.objective=dpo",)),
        "reflection.pairs": (DPO, ("method.reflection.pairs=both",)), "reflection.pairing": (DPO, ("method.reflection.pairing=random",)),
        "reflection.beta": (DPO, ("method.reflection.beta=0.2",)), "reflection.nll": (DPO, ("method.reflection.nll=0.5",)),
        "reflection.gamma": (SIMPO, ("method.reflection.gamma=1",)),
    },
    ("method", "on_policy"): {
        "name": ((), ("method=fine_tune_cot", "objective=distribution")), "start": (TRAINED, ("method.start=student",)),
        "wrong": ((), ("method.wrong=skipped",)), "own_share": ((), ("method.own_share=0.5",)),
        "last_own_share": ((), ("method.last_own_share=0.5",)), "max_unfinished": ((), ("method.max_unfinished=0.5",)),
    },
    ("student", "pretrained"): {
        "path": ((), ("student.path=FILES/model1",)), "temperature": ((DRAWN,), ("student.temperature=0.5",)),
        "top_k": ((DRAWN,), ("student.top_k=5",)),
        **{f"lora.{name}": (("student.lora.rank=4",), (f"student.lora.{name}={value}",))
           for name, value in (("alpha", 8), ("dropout", 0.1), ("targets", "[q]"))},
    },
    ("student", "tiny"): {
        "architecture": ((), ("student.architecture=encoder_decoder",)), "width": ((), ("student.width=128",)),
        "heads": ((), ("student.heads=8",)), "tokenizer": ((), ("student.tokenizer=FILES/tokenizer1",)),
        "temperature": ((DRAWN,), ("student.temperature=0.5",)),
        "top_k": ((DRAWN,), ("student.top_k=5",)),
    },
    ("student", "api"): {
        "base_url": ((), ("student.base_url=http://127.0.0.1:8/v1",)),
        "path": (("method=as_trained", "student.path=FILES/remote_student1"), ("student.path=FILES/remote_student2",)),
        "headers": ((), ("++student.headers={X-Team: PATH}",)),
        "api_key_env": ((), ("student.api_key_env=none",)), "temperature": ((DRAWN,), ("student.temperature=0.5",)),
        "max_tokens_parameter": ((), ("student.max_tokens_parameter=max_completion_tokens",)),
        "prices": ((), ("student.prices=FILES/prices.yaml",)),
    },
    ("trainer", "trainer"): {
        "loss_mean": ((), ("trainer.loss_mean=counted",)), "schedule": ((), ("trainer.schedule=cosine",)),
        "precision": ((), ("trainer.precision=bf16-mixed",)), "eval_precision": ((), ("trainer.eval_precision=bf16-true",)),
        "selection": ((), ("trainer.selection=last",)), "strategy": ((), ("trainer.strategy=fsdp",)),
    },
    ("objective", "distribution"): {
        "teacher": ((), ("objective.teacher=FILES/model2",)), "share": ((), ("objective.share=0.9",)),
        "divergence": ((), ("objective.divergence=reverse_kl",)), "context": ((), ("objective.context=teacher",)),
        "beta": (("objective.divergence=jsd",), ("objective.beta=0.2",)),
    },
    ("objective", "preference"): {
        "loss": ((), ("objective.loss=simpo",)), "pairing": ((), ("objective.pairing=random",)),
        "gamma": (("objective.loss=simpo",), ("objective.gamma=1",)),
    },
    ("", "root"): {
        "until": ((), ("until=train",)), "output_dir": ((), ("output_dir=FILES/elsewhere",)),
        "redraw_rationales": ((), ("redraw_rationales=true",)),
    },
}  # fmt: skip
GROUPS = {group.replace("-", "_") for group, _ in SCHEMAS}


def options_of(schema: type, above: str = "") -> list[tuple[str, object, object]]:
    """Name, dataclass field and type of each option of a schema; those of nested groups with the group's name before a dot."""
    types = typing.get_type_hints(schema)
    options: list[tuple[str, object, object]] = []
    for option in fields(schema):
        if is_dataclass(types[option.name]):
            options += options_of(types[option.name], f"{above}{option.name}.")
        else:
            options.append((above + option.name, option, types[option.name]))
    return options


OPTIONS = [(key, *option) for key, schema in SCHEMAS.items() if key[0] != "logger" for option in options_of(schema)]
OPTIONS += [(("", "root"), *option) for option in options_of(Config) if option[0].partition(".")[0] not in GROUPS]
NAMES = [f"{key[1]}.{name}" for key, name, _, _ in OPTIONS]


def another(kind: object, now: object) -> object:
    """Another value of an option's type."""
    types = typing.get_args(kind) or (kind,)
    if bool in types:
        return not now
    number = now if isinstance(now, int | float) else 6
    return number + 1 if int in types else 2.0 * number + 1 if float in types else "another"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("identity"))


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# --- every option -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "name", "option", "kind"), OPTIONS, ids=NAMES)
def test_every_option_counts_or_is_neutral_with_a_reason(key, name, option, kind, files):
    overrides, change = CHANGES.get(key, {}).get(name, ((), ()))
    base = (*USES.get(key, TOY), *overrides)
    run = run_of(files, *base)
    if not change:
        now, group = run.config, key[0].replace("-", "_")
        for part in (f"{group}.{name}" if group else name).split("."):
            now = getattr(now, part)
        change = (f"{group}.{name}".removeprefix(".") + f"={another(kind, now)}",)
    changed = run_of(files, *base, *change)
    part = part_of(option)
    if part.kind == "neutral":
        assert part.reason
        assert changed.run_id == run.run_id, f"{change} renames the run, but is neutral: {part.reason}"
    else:
        assert changed.run_id != run.run_id, f"{change} does not rename the run"
        assert name == "seed" or changed.setting != run.setting


def test_options_of_a_neutral_group_are_neutral():
    (logger,) = (option for option in fields(Config) if option.name == "logger")
    assert part_of(logger).kind == "neutral"
    assert part_of(logger).reason


def test_resolved_options_name_what_they_are_resolved_to():
    options = [option for schema in SCHEMAS.values() for _, option, _ in options_of(schema)]
    assert all(part_of(option).reason for option in options if part_of(option).kind == "resolved")


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (TOY, "curation.max_words=9"), ((*TOY, "method=fine_tune"), "diversity=9"),
        ((*TOY, "method=fine_tune"), "curation.filters=[]"), ((*TOY, "method=fine_tune"), "prompt=zero_shot_cot_kojima"),
        ((*TOY, "method=zero_shot"), "trainer.lr=1.0"), (GPT2, "student.lora.alpha=9"), (GPT2, "student.temperature=0.1"),
        ((*GPT2, "method=zero_shot"), "student.lora.rank=4"), ((*GPT2, "method=zero_shot"), "student.max_completion_tokens=99"),
        ((*GPT2, "method=zero_shot_cot", "method.prompt_tokens=99"), "student.max_prompt_tokens=99"),
        ((*GPT2, "student.path=FILES/model1"), "student.revision=v2"),
        (TOY, "prompt.answer_triggers.choice=So"), (SHOTS, "prompt.answer_tokens=9"), (API, "trainer.lr=1.0"),
        ((*API, "method=zero_shot"), "student.epochs=9"), ((*ITSELF[:2], "method=zero_shot"), "prompt.answer_tokens=9"),
        ((*TAILORED, "method.rounds=1"), "method.feedback.mistakes=3"), ((*TAILORED, "method.rounds=1"), "method.start=pretrained"),
        ((*TAILORED, "method.rounds=1"), "method.one_schedule=true"), ((*TAILORED, "method.rounds=1"), "method.skip_solved=2"),
        ((*TAILORED, "method.reflection.weight=0"), "method.reflection.margin=3"), (TAILORED, "method.reflection.pairs=teacher"),
        ((*TAILORED, "method.reflection.weight=0"), "method.reflection.objective=none"),
        ((*TAILORED, *DPO), "method.reflection.gamma=1"), ((*TAILORED, *DPO), "method.reflection.margin=3"),
        ((*TOY, "objective=preference"), "objective.gamma=1"),
        ((*TAILORED, "method.feedback.source=self"), "method.feedback.requests=3"),
        (TAILORED, "method.feedback.retries=2"), (TAILORED, OTHER_FEEDBACK.replace("template", "critique_template")),
        ((*TAILORED, *SELF), "method.feedback.form=critique"),
        (TAILORED, "method.own.arithmetic=true"), ((*TAILORED, *SELF), "method.sampler.steps=9"),
        ((*TAILORED, *SELF, "method.sampler.objective=dpo"), "method.sampler.gamma=9"),
        ((*TAILORED, "method.feedback.source=plain"), "method.feedback.max_tokens=3"),
        ((*ON_POLICY, "method.temperature=0"), "method.top_k=9"),
        ((*ON_POLICY, *TRAINED, "method.start=student"), "trainer.max_steps=9"),
        ((*ON_POLICY, *TRAINED, "method.start=student"), "diversity=9"),
    ],
)  # fmt: skip
def test_options_that_a_run_does_not_read_rename_no_run(base, change, files):
    assert run_of(files, *base, change).run_id == run_of(files, *base).run_id


# --- options of later versions ----------------------------------------------------------------------------------------


def with_option(name: str, kind: type, option: object) -> Config:
    """The default configuration with an additional option of ``curation``."""
    later = make_dataclass("Later", [(name, kind, option)], bases=(CurationConfig,))
    curation = run_of_default().config.curation
    values = {option.name: getattr(curation, option.name) for option in fields(CurationConfig)}
    return replace(run_of_default().config, curation=later(**values))


def run_of_default():
    return run_of(Path("."), *TOY)


def renamed(name: str, kind: type, option: object) -> bool:
    """Whether an additional option renames the default run."""
    return resolve(with_option(name, kind, option)).run_id != run_of_default().run_id


def test_a_new_option_renames_no_run_and_a_new_default_does():
    assert not renamed("new", int, absent_at(3))
    assert renamed("new", int, absent_at(3, default=4))
    assert renamed("new", int, 3), "a new option that is not declared with absent_at"
    assert not renamed("new", int, neutral(3, "a reason"))


def test_a_new_group_of_options_renames_no_run():
    @dataclass
    class Inner:
        new: int = absent_at(3)
        label: str = neutral("a", "a label")

    @dataclass
    class Outer:
        inner: Inner
        old: int = 1
        path: str = resolved("here", "its content")

    assert counted(Outer(Inner())) == {"old": 1}
    assert counted(Outer(Inner(4))) == {"inner": {"new": 4}, "old": 1}
    assert counted(Outer(Inner()), without=("old",)) == {}
    assert counted(Outer(Inner(4)), only=("old",)) == {"old": 1}


def test_declared_options_are_options_of_hydra():
    @dataclass
    class Schema:
        words: list[str] = neutral([], "a reason")
        table: dict[str, int] = resolved({}, "something")
        limit: int | None = absent_at(None)
        needed: str = neutral("???", "a reason")

    first, second = Schema(), Schema()
    first.words.append("x")
    assert second.words == []
    config = OmegaConf.structured(Schema)
    assert OmegaConf.missing_keys(config) == {"needed"}
    assert (config.words, config.table, config.limit) == ([], {}, None)


# --- filters ----------------------------------------------------------------------------------------------------------


def short(judged, min_words):
    return "short" if len(judged.rationale.split()) < min_words else None


def test_a_filters_setting_counts_if_the_filter_is_used(monkeypatch):
    monkeypatch.setitem(filters.FILTERS, "short", short)

    def run_id(min_words: int, *names: str) -> str:
        config = with_option("min_words", int, 3)
        return resolve(replace(config, curation=replace(config.curation, min_words=min_words, filters=list(names)))).run_id

    assert run_id(3, "answer", "short") != run_id(50, "answer", "short")
    assert run_id(3, "answer") == run_id(50, "answer")


def test_a_filter_gets_only_the_settings_that_it_names(monkeypatch):
    """A filter receives only the settings that its parameters name, and only these count in the identity."""
    received = {}
    monkeypatch.setitem(filters.FILTERS, "short", lambda judged, **settings: received.update(vars(judged), **settings))
    with pytest.raises(FcotError, match="takes any settings; name each one"):
        _ = resolve(replace(run_of_default().config, curation=replace(run_of_default().config.curation, filters=["short"]))).rules
    monkeypatch.setitem(filters.FILTERS, "short", lambda judged: received.update(vars(judged)))
    run = resolve(replace(run_of_default().config, curation=replace(run_of_default().config.curation, filters=["short"])))
    problem = run.problems[0]
    completion = filters.Completion(0, 0, "So.", problem.answer, "stop")
    list(filters.curate([completion], run.problems, run.task.rule, lambda completion, rule: rule.read(completion.answer_text), run.rules))
    assert not {"rules", "settings", "max_words"} & set(received)


# --- the teacher ------------------------------------------------------------------------------------------------------


def test_chat_and_completions_are_different_requests(files):
    for base in (SERVER, HF):
        ids = {run_of(files, *base, "prompt=zero_shot_cot", f"teacher.endpoint={endpoint}").run_id for endpoint in ("chat", "completions")}
        assert len(ids) == 2


def test_the_number_of_stored_tokens_counts_if_they_are_learned(files):
    base = (*SERVER, "prompt=zero_shot_cot", "teacher.tokenizer=FILES/tokenizer1", "objective=distribution", "objective.teacher=stored")
    changes = (("teacher.top_logprobs=5",), ("teacher.top_logprobs=6",), ("teacher.top_logprobs=5", "teacher.score_stored=true"))
    assert len({run_of(files, *base, *change).run_id for change in changes}) == len(changes)


@pytest.mark.parametrize("base", [HF, TOY], ids=["teacher", "student"])
def test_run_ids_are_equal_with_and_without_a_gpu(base, files, monkeypatch):
    here = run_of(files, *base, "trainer.precision=auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    there = resolve(here.config)
    assert (here.precision, there.precision) == ("32-true", "bf16-mixed")
    assert there.run_id == here.run_id


@dataclass
class Elsewhere:
    """A teacher of another package."""

    name: str = "elsewhere"
    model: str = "m"
    wrong: bool = neutral(False, "only for the test")
    generates = True

    def price(self):
        return None

    def faults(self):
        return ["teacher.wrong=true: false"] if self.wrong else []

    def build(self, config, temperature):
        teacher = run_of_default().teacher
        return type("Built", (), {**{name: getattr(teacher, name) for name in ("chat", "generate")}, "identity": {"model": self.model}})()


def test_a_teacher_of_another_package_has_checks_and_counts():
    config = run_of_default().config
    assert list(faults_of(replace(config, teacher=Elsewhere()))) == []
    assert list(faults_of(replace(config, teacher=Elsewhere(wrong=True)))) == ["teacher.wrong=true: false"]
    ids = {resolve(replace(config, teacher=Elsewhere(model=model, wrong=wrong))).run_id for model in "ab" for wrong in (True, False)}
    assert len(ids) == 2


# --- the seed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "seeded"),
    [
        (TOY, True), ((*TOY, "method=zero_shot"), True), (GPT2, True), ((*GPT2, "method=zero_shot"), False),
        ((*GPT2, "method=zero_shot", DRAWN), True), ((*GPT2, "method=zero_shot_cot"), False), (API, True),
        ((*API, "method=zero_shot"), False), ((*API, "method=zero_shot", DRAWN), False), (ITSELF, False),
        ((*ITSELF, "student.self_consistency=3"), False),
    ],
)  # fmt: skip
def test_a_seed_that_changes_no_result_renames_no_run(base, seeded, files):
    runs = [run_of(files, *base, f"seed={seed}") for seed in (0, 1)]
    assert (runs[0].run_id != runs[1].run_id) == seeded
    assert ("-seed0-" in runs[0].run_id) == seeded
    assert runs[0].setting == runs[1].setting


@pytest.mark.parametrize(
    "overrides", [["method=zero_shot"], ["method=zero_shot_cot", "prompt.rationale_tokens=8", "prompt.answer_tokens=8"]]
)
def test_runs_that_do_not_use_the_seed_give_equal_answers_with_two_seeds(overrides, tmp_path):
    save_gpt2(tmp_path / "model")
    common = (*TOY, "student=gpt2", f"student.path={tmp_path}/model", "student.max_new_tokens=8", "logger=none", *overrides)
    runs = [run_of(tmp_path / str(seed), *common, f"seed={seed}") for seed in (0, 1)]
    for run in runs:
        execute(run, "")
    first, second = (run.directory.predictions.read_bytes() for run in runs)
    assert first == second
    assert runs[0].run_id == runs[1].run_id


def test_a_sweep_over_seeds_has_one_job_if_the_seed_changes_nothing(tmp_path):
    jobs = [[*TOY, f"output_dir={tmp_path}", "student=gpt2", f"method={method}", f"seed={seed}"]
            for method in ("zero_shot", "fine_tune") for seed in (0, 1, 2)]  # fmt: skip
    sweep, runs = make_plan(tmp_path / "sweep", jobs, [], {"kind": "serial"})
    assert [job.same_as for job in sweep.jobs] == [None, 0, 0, None, None, None]
    assert sorted(runs) == [0, 3, 4, 5]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_sweep_reads_a_models_folder_once(tmp_path, monkeypatch):
    files, read = write_files(tmp_path), []
    for path in (files / "model1").iterdir():
        os.utime(path, (1, 1))
    original = base_files.file_fingerprint
    monkeypatch.setattr(base_files, "file_fingerprint", lambda path: (read.append(path.name), original(path))[1])
    common = [*TOY, f"output_dir={tmp_path}/outputs"]
    for group in ("teacher=hf", "student=gpt2"):
        name = group.partition("=")[0]
        jobs = [[*common, group, f"{name}.path={files}/model1", f"seed={seed}"] for seed in range(6)]
        _, runs = make_plan(tmp_path / "sweep", jobs, [], {"kind": "serial"})
        assert len({run.setting for run in runs.values()}) == 1
        assert len(runs) == 6
    assert sorted(read) == ["config.json", "model.safetensors"]


# --- no run is renamed ------------------------------------------------------------------------------------------------

RUNS = {
    "default": TOY,
    "d1": (*TOY, "diversity=1"), "d8_seed3": (*TOY, "diversity=8", "seed=3"), "temperature": (*TOY, "teacher.temperature=0.3"),
    "coin": ("dataset=toy_coin_flip", *TOY), "letters": ("dataset=toy_last_letter", *TOY, "dataset.limit=9"),
    "custom": CUSTOM, "choices": LETTERS, "template": (*CUSTOM, "split-mode=template"),
    "split_file": (*CUSTOM, "split-mode=file", "split_mode.path=FILES/split1.json"),
    "subset": (*TOY, "split_mode.subset=8"), "published": USES["dataset", "published"], "numbers": (*TOY, "prompt.numbers=paper"),
    "t5": (*TOY, "student=tiny_t5"), "zero_shot": (*TOY, "method=zero_shot"), "fine_tune": (*TOY, "method=fine_tune"),
    "few_shot": (*SHOTS, "method=few_shot_cot"), "gpt2": GPT2, "flan": (*TOY, "student=flan_t5_base", "method=zero_shot_cot"),
    "folder": (*GPT2, "student.path=FILES/model1"), "chat_student": (*TOY, "student=qwen3_0_6b", "method=zero_shot"),
    "lora": (*GPT2, "student.lora.rank=8"), "votes": (*GPT2, DRAWN), "trainer_paper": (*GPT2, "trainer=paper"),
    "tokens": (*GPT2, "trainer.batch_tokens=4096", "trainer.packing=true", "trainer.precision=bf16-mixed"),
    "eval_bf16": (*GPT2, "trainer.eval_precision=bf16-true", "method=zero_shot"),
    "openai": (*SERVER, "teacher.endpoint=chat"), "openai_text": (*SERVER, "teacher.endpoint=completions"),
    "openai_chat_prompt": (*SERVER[:-1], "teacher.parameters={top_p: 0.9}"), "batch": (*SERVER[:-1], "teacher=openai_batch", "diversity=2"),
    "openai_system": (*SERVER, "prompt.system=Be brief."), "itself_system": (*SERVER, *ITSELF[-2:], "prompt.system=Be brief."),
    "distinct": (*SERVER, "teacher.resample_identical=true"), "hf": HF, "hf_dtype": (*HF, "teacher.dtype=bfloat16"),
    "hf_folder": (*HF, "teacher.path=FILES/model1"), "replay": USES["teacher", "replay"],
    "strict": (*TOY, "curation=strict"), "vote": (*TOY, "curation=vote"), "concise": (*TOY, "curation=concise"),
    "golden": (*TOY, "curation=golden", "curation.golden=FILES/golden1.json"), "undersampled": (*TOY, "curation.max_samples=9"),
    "golden_matched": (*TOY, "curation=golden_matched", "curation.golden=FILES/golden1.json"),
    "chosen": (*TOY, "curation.max_per_problem=2"), "chosen_by_rsr": (*TOY, "curation.max_per_problem=2", "curation.choose_by=rsr"),
    "judged": (*TOY, "curation.judge=filter"), "judge_records": (*TOY, "curation.judge=record", "curation.judge_path=FILES/judge1.txt"),
    "prompt_file": (*TOY, "prompt=custom", "prompt.path=FILES/prompt1.txt"), "exemplars": SHOTS,
    "tailored": TAILORED, "tailored_tiny": (*TOY, "method=tailored"), "tailored_once": (*TAILORED, "method.rounds=1"),
    "tailored_self": (*TAILORED, "method.feedback.source=self"), "tailored_plain": (*TAILORED, "method.feedback.source=plain"),
    "tailored_alone": (*TAILORED, "method.reflection.weight=0.0"), "tailored_dpo": (*TAILORED, *DPO), "tailored_simpo": (*TAILORED, *SIMPO),
    "preference": (*TOY, "objective=preference"),
    "on_policy": ON_POLICY, "on_policy_student": (*ON_POLICY, *TRAINED, "method.start=student"),
    "on_policy_mixed": (*ON_POLICY, *TRAINED, "method.start=student", "method.last_own_share=0.5"),
    "api": API, "api_zero_shot": (*API, "method=zero_shot"), "api_votes": (*API, DRAWN), "itself": ITSELF,
    "itself_votes": (*ITSELF, "student.self_consistency=3"), "itself_zero_shot": (*ITSELF[:2], "method=zero_shot"),
}  # fmt: skip


def ids_of(folder: Path) -> dict[str, list[str]]:
    """Run id and setting of every configuration of the table."""
    return {name: [run.run_id, run.setting] for name, overrides in RUNS.items() for run in [run_of(folder, *overrides)]}


def test_no_run_is_renamed(files):
    frozen = json.loads(FROZEN.read_text())
    ids = ids_of(files)
    assert {name: ids[name] for name in ids if ids[name] != frozen.get(name)} == {}
    assert list(frozen) == list(ids)


def test_all_run_ids_in_the_table_are_different():
    run_ids = [run_id for run_id, _ in json.loads(FROZEN.read_text()).values()]
    assert len(set(run_ids)) == len(run_ids)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        FROZEN.write_text(json.dumps(ids_of(write_files(Path(place))), indent=1) + "\n")
    print(f"wrote {FROZEN}: say in CHANGELOG.md which runs are renamed and why", file=sys.stderr)
