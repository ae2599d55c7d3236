"""Configuration: every YAML file composes, values are typed, all faults are reported together, misspelt names get a suggestion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import zygote
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fcot.base.errors import ConfigFaults, FcotError
from fcot.config.checks import to_config
from fcot.config.overrides import prepare
from fcot.config.schema import SCHEMAS, register_schemas
from fcot.curation.filters import CONCISE, FILTERS
from fcot.sweeps.launch import launch

CONF = Path(__file__).parent.parent / "conf"
CHOICES = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))
HEAVY = ("torch", "transformers", "datasets", "wandb", "openai", "pytorch_lightning", "scipy", "altair", "vl_convert")


@pytest.fixture(autouse=True, scope="module")
def schemas():
    register_schemas()


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


# Further overrides that a choice needs for a complete configuration.
NEEDS = {
    ("logger", "lightning"): ["logger.target=pytorch_lightning.loggers.CSVLogger"],
    ("dataset", "custom"): ["dataset.path=a/hub_id", "dataset.answer_type=number", "teacher=openai", "teacher.model=m"],
    ("teacher", "replay"): ["dataset=multiarith", f"teacher.path={CONF}"],
    ("teacher", "openai"): ["teacher.model=m"],
    ("teacher", "openai_batch"): ["teacher.model=m"],
    ("teacher", "hf"): ["teacher.model=owner/name"],
    ("teacher", "function"): ["teacher.function=identities.a_teacher", "teacher.model_id=m"],
    ("student", "openai"): ["student.model=m"],
    ("student", "teacher"): ["method=zero_shot_cot"],
    ("method", "few_shot_cot"): ["prompt.exemplars=train"],
    ("method", "on_policy"): ["objective.teacher=owner/name"],
    ("experiment", "distillation"): ["objective.teacher=owner/name"],
    ("method", "as_trained"): ["student=causal", "student.hub_id=owner/name"],
    ("curation", "golden_matched"): [f"curation.golden={CONF / 'config.yaml'}"],
    ("curation", "golden"): [f"curation.golden={CONF / 'config.yaml'}"],
    ("student", "causal"): ["student.hub_id=owner/name"],
    ("prompt", "few_shot_cot"): [f"prompt.exemplars={CONF / 'config.yaml'}"],
    ("prompt", "custom"): [f"prompt.path={CONF / 'config.yaml'}"],
    ("objective", "distribution"): ["objective.teacher=owner/name"],
    ("split-mode", "file"): [f"split_mode.path={CONF / 'config.yaml'}"],
    ("split-mode", "published"): ["dataset=gsm8k", "teacher=openai", "teacher.model=m"],
}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_without_faults(group, choice, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
    needs = NEEDS.get((group, choice), [])
    if group == "dataset" and not choice.startswith("toy") and not needs:
        needs = ["teacher=openai", "teacher.model=m"]
    if group == "experiment" and choice != "quickstart":
        needs = ["teacher.model=m", *needs]
    config = to_config(composed(f"{group}={choice}", *needs))
    if group != "experiment":
        preset_of = {("method", preset): "tailored" for preset in ("star", "rft", "dpo_st")}
        assert getattr(config, group.replace("-", "_")).name == preset_of.get((group, choice), choice)


def test_every_group_has_a_schema():
    groups = {group for group, _ in CHOICES} - {"experiment"}
    assert groups == {group for group, _ in SCHEMAS}
    for group, choice in CHOICES:
        if group != "experiment":
            first = OmegaConf.load(CONF / group / f"{choice}.yaml").defaults[0]
            base = first if isinstance(first, str) else None  # a preset begins with another choice
            assert (group, base) in CHOICES if base else f"/schema/{group}" in first


def test_help_names_every_choice_and_every_root_key():
    text = zygote.run(["-m", "fcot.run", "--help"]).stdout
    words = set(text.replace("(", " ").split())
    assert {choice for _, choice in CHOICES} <= words
    assert all(f"{key}=" in text for key in ("diversity", "seed", "until", "output_dir"))


@pytest.mark.parametrize("flag", [["--help"], ["--cfg", "job"]])
def test_help_and_cfg_import_nothing_heavy(flag):
    script = f"""
import sys
sys.argv = ["fcot.run", *{flag!r}]
from fcot.run import main
try:
    main()
finally:
    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr.strip().endswith("[]")
    assert result.stdout


def test_datasets_set_the_split_mode_and_students_the_trainer():
    assert composed("dataset=gsm8k").split_mode.name == "published"
    assert composed("dataset=gsm8k", "split-mode=sample").split_mode.name == "sample"
    assert composed("dataset=svamp").split_mode.name == "sample"
    assert composed("student=t5_small").trainer.name == "standard"
    assert composed("student=t5_small", "trainer=paper").trainer.name == "paper"
    assert composed("student=tiny_t5").trainer.name == "tiny"


def test_trainer_paper_has_paper_as_settings():
    trainer = composed("trainer=paper").trainer
    assert (trainer.lr, trainer.batch_size, trainer.epochs, trainer.max_steps) == (3e-4, 8, 20, None)
    assert (trainer.schedule, trainer.clip_norm, trainer.precision, trainer.selection) == ("constant", None, "32-true", "last")


def test_an_experiment_overrides_groups_and_the_command_line_overrides_it():
    config = composed("experiment=quickstart", "student=tiny_t5")
    assert config.student.name == "tiny_t5"


def test_values_are_typed(run_fcot):
    for override in ("diversity=many", "trainer.batch_size=big", "teacher.error_rate=often", "curation.filters=answer"):
        result = run_fcot(override)
        assert result.returncode == 1
        assert override.split("=")[0] in result.stderr
        assert "Traceback" not in result.stderr


def faults(*overrides: str) -> list[str]:
    with pytest.raises(ConfigFaults) as caught:
        to_config(composed(*overrides))
    return caught.value.faults


def test_all_faults_are_in_one_message():
    reported = faults("diversity=0", "trainer.lr=-1", "dataset=custom", "teacher=replay", "teacher.path=nowhere", "until=lunch", "seed=-1")
    for part in ("dataset.path is not set", "dataset.answer_type is not set", "diversity=0", "trainer.lr", "teacher.path=nowhere",
                 "until=lunch", "seed=-1"):  # fmt: skip
        assert any(part in fault for fault in reported), part


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=svamp", "dataset.path=nope.json"], "dataset.path=nope.json: no such file"),
        (["dataset=svamp", f"dataset.path={CONF}"], "a folder, not a file"),
        (["dataset=svamp"], "teacher=oracle solves the toy tasks only"),
        (["teacher=replay", f"teacher.path={CONF}"], "teacher=replay has nothing for dataset=toy_arithmetic"),
        (["teacher=openai", "teacher.model=m"], "OPENAI_API_KEY"),
        (["teacher=openai", "teacher.model=m", "teacher.temperature=0"], "greedy decoding gives the same rationale"),
        (["teacher=openai", "teacher.model=m", "teacher.base_url=localhost:8000"], "a URL such as"),
        (["seed=99999999999"], "at least 0 and at most"),
        (["trainer.clip_norm=-1"], "more than 0, or null"),
        (["method=zero_shot", "until=train"], "does not train"),
        (["student.max_prompt_tokens=2"], "at least 8"),
        (["split-mode=file"], "split_mode.path=FILE"),
        (["split_mode.path=x.json"], "only split-mode=file reads it"),
        (["split_mode.templates=x.json"], "only split-mode=template reads it"),
        (["split-mode=published"], "has no published split"),
        (["split_mode.train_fraction=1.5"], "more than 0 and below 1"),
        (["student=gpt2", "student.path=nowhere"], "no such folder"),
        (["student=gpt2", f"student.path={CONF}"], "no config.json"),
        (["student.width=30"], "not a multiple"),
        (["trainer.max_steps=null"], "training would not end"),
        (["trainer.selection=test"], "choose from validation, last"),
        (["curation.filters=[answr]"], f"choose from {', '.join(FILTERS)}, {CONCISE}"),
        (["method=fine_tune", "until=curate"], "uses no teacher"),
        (
            ["dataset=custom", "dataset.path=a/b", "dataset.answer_type=choice", "teacher=openai", "teacher.model=m"],
            "needs capital letters: dataset.choices=ABCD; for words use dataset.answer_type=text",
        ),
        (["prompt.template=hello"], "must contain {question}"),
    ],
)
def test_impossible_configurations_say_what_to_change(overrides, message, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert any(message in fault for fault in faults(*overrides))


def test_a_student_folder_without_weights_is_a_fault(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert any("has no parameters" in fault for fault in faults("student=gpt2", f"student.path={tmp_path}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diversty=3", "Did you mean diversity?"),
        ("trainer.lrr=1", "Did you mean trainer.lr?"),
        ("teacher.path=x", "there is no teacher.path. teacher=hf and replay have it.\nteacher has: error_rate, name, temperature"),
        (
            "teacher.modle=x",
            "there is no teacher.modle. Did you mean teacher.model? teacher=hf, openai and openai_batch have it.\nteacher has: ",
        ),
        ("method.feedback.form=critique", "there is no method.feedback. method=dpo_st, rft, star and tailored have it."),
        ("student=flan_t5_bas", "flan_t5_base"),
        ("students=gpt2", "Did you mean student?"),
        ("split_mode=template", "split-mode=template"),
        ("split-mode.train_fraction=0.8", "split_mode.train_fraction=0.8"),
        ("experiment=quick", "quickstart"),
        ("+trainer.lrr=1", "nothing reads added keys"),
        ("student=tinyy_t5", "Did you mean student=tiny_t5?"),
        ("experiment=toy/scaling_divresity", "Did you mean experiment=toy/scaling_diversity?"),
        ("experiment=scaling_divresity", "Did you mean experiment=scaling_diversity?"),
        ("dataset.path=a(b).json", "need quotes"),
    ],
)
def test_an_unknown_key_or_choice_lists_the_existing_ones(run_fcot, override, message):
    result = run_fcot(override)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("overrides", "faults"), [
    (["teacher.headers.X=VAR"], ["teacher.headers: teacher=oracle has no such option; teacher=openai and openai_batch have it"]),
    (["teacher.parameters={top_p: 0.9}"], ["teacher.parameters: teacher=oracle has no such option; teacher=function, openai and"]),
    (["teacher=openai", "teacher.model=m", "teacher.base_url=http://h/v1", "teacher.headers.X=VAR"], []),
    (["logger.options.x=1", "student.headers.X=VAR"], ["logger.options: logger=csv has no", "student.headers: student=tiny_gpt2 has no"]),
    (["logger=tensorboard", "logger.options.x=1"], []),
    (["logger.options.x=1", "diversity=0", "teacher=openai", "teacher.base_url=http://h/v1"], ["logger.options", "teacher.model", "div"]),
])  # fmt: skip
def test_options_of_another_choice_are_faults_that_name_the_choices_which_have_them(overrides, faults, monkeypatch):
    """Hydra adds keys of these open mappings itself, wherever the choice has no such mapping."""
    monkeypatch.setenv("VAR", "value")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = composed(*prepare(overrides))
    if not faults:
        to_config(config)
        return
    with pytest.raises(ConfigFaults) as error:
        to_config(config)
    assert len(error.value.faults) == len(faults)
    assert all(any(shown.startswith(fault) for shown in error.value.faults) for fault in faults)


@pytest.mark.parametrize(("kind", "parameters", "message"), [
    ("serial", {"additional_parameters": {"gres": "gpu:1"}}, "hydra/launcher=serial has no such option; slurm and slurm_ddp have it"),
    ("local", {"additional_parameters": {"gres": "gpu:1"}}, "hydra/launcher=local has no such option; slurm and slurm_ddp have it"),
    ("slurm", {"signal_delay_s": 120, "timeout_min": 2}, "the warning would come at the start"),
])  # fmt: skip
def test_launcher_options_that_cannot_work_are_errors_that_leave_no_folder(tmp_path, kind, parameters, message):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "multirun.yaml").write_text("")  # by Hydra
    with pytest.raises(FcotError, match=message):
        launch(folder, [["seed=0"]], [], {"kind": kind} | parameters)
    assert not folder.exists()


@pytest.mark.parametrize(
    "override",
    [
        "teacher.api_key=abc",
        "+token=abc",
        "++teacher.secret=x",
        "teacher.model=sk-abcdefgh1jklmnopqrstuvwx",
        "+openai.key=1",
        "teacher.model=${oc.env:OPENAI_API_KEY}",
        "hydra.job.env_set={OPENAI_API_KEY:abcd}",
        "teacher.base_url=http://me:hunter2pw@host/v1",
    ],
)
def test_an_override_that_looks_like_a_secret_is_an_error_and_never_written(run_fcot, tmp_path, override):
    result = run_fcot(override, "-m", "seed=0,1")
    assert result.returncode == 1
    assert "secret" in result.stderr
    assert override.partition("=")[2] not in result.stderr + result.stdout or len(override.partition("=")[2]) < 4
    assert list(tmp_path.iterdir()) == []


def test_ordinary_overrides_do_not_look_like_secrets():
    arguments = [
        "student.max_prompt_tokens=100",
        "student.hub_id=hf-internal-testing/tiny-random-gpt2",
        "dataset.path=/data/hf_datasets_processed_v2/sk-learn-experiments-2024/x.jsonl",
        "prompt.rationale_tokens=64",
        "teacher.model=gpt-4.1-mini",
        "seed=1",
    ]
    assert prepare(arguments) == arguments
    with pytest.raises(FcotError):
        prepare(["teacher.token=x"])


def test_no_field_can_hold_a_secret():
    for schema in SCHEMAS.values():
        names = set(schema.__dataclass_fields__) - {"api_key_env"}  # the name of an environment variable
        assert not {name for name in names if any(word in name for word in ("key", "secret", "password"))}


@pytest.mark.parametrize("override", ["teacher.api_key_env=sk-made-up-0123456789abcdef", "student.api_key_env='abc def'"])
def test_api_key_env_takes_the_name_of_a_variable_only(override):
    with pytest.raises(FcotError) as error:
        prepare([override])
    assert "made-up" not in str(error.value)
    assert "abc def" not in str(error.value)


@pytest.mark.parametrize("arguments", [["-m", "diversity=1,2,4"], ["diversity=1,2,4", "-m"], ["-m", "diversity=range(1,4)"]])
def test_a_sweep_over_diversity_needs_no_extra_option(arguments):
    assert prepare(arguments) == arguments


def test_a_removed_option_names_its_replacement():
    with pytest.raises(FcotError, match=r"teacher\.temperature=0\.7"):
        prepare(["diversity_is_swept=true"])


def test_the_resolved_configuration_is_plain_yaml():
    text = OmegaConf.to_yaml(composed(), resolve=True)
    assert "diversity: 4" in text
    assert "???" not in text
