"""Every experiment composes at every point of its axes, and its toy form runs and writes a table and a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fcot.base.resources import CONF
from fcot.config.checks import to_config
from fcot.config.schema import register_schemas

EXPERIMENTS = sorted(path for path in (CONF / "experiment").glob("**/*.yaml"))
TOYS = [path.stem for path in EXPERIMENTS if path.parent.name == "toy"]
SMALLEST = [
    "dataset.n_problems=40", "trainer.max_steps=2", "trainer.warmup_steps=1", "trainer.evaluate_every_steps=2", "student.vocab_size=400",
    "student.layers=1", "student.width=16", "student.max_new_tokens=24", "prompt.rationale_tokens=24", "prompt.answer_tokens=4",
]  # fmt: skip
SMALLER_AXES = {  # axes without expensive points, or points that are impossible with 40 problems
    "table9": ["dataset=toy_last_letter", "diversity=2"], "scaling_data": ["split_mode.subset=null,16,8", "diversity=2"],
    "scaling_student": ["student.width=8,16,32"], "cost": ["split_mode.subset=null,16"],
    "hyperparameters": ["trainer.lr=1e-3,3e-3", "trainer.batch_size=8"],
    "table1": ["dataset=toy_coin_flip"], "tailored_rounds": ["seed=0"], "tailored_reflection": ["method.reflection.weight=0,0.5"],
    "rationale_filter": ["dataset.n_problems=1350", "curation=answer,golden,golden_matched"],
    "tailored_budget": ["diversity=2"], "tailored_feedback": ["method.reflection.weight=0.1"],
    "inference_length": ["student.max_new_tokens=12,24"], "mistakes": ["seed=0"],
}  # fmt: skip


def axes(path: Path) -> dict[str, list[str]]:
    """The values of each axis, by key."""
    if "hydra" not in (loaded := OmegaConf.load(path)):
        return {"seed": ["0"]}  # one run
    params = loaded.hydra.sweeper.params
    parsed = (
        OverridesParser.create().parse_override(f"{key}={value}") for key, value in OmegaConf.to_container(params, resolve=False).items()
    )
    return {
        axis.key_or_group: list(axis.sweep_string_iterator()) if axis.is_sweep_override() else [str(axis.get_value_element_as_str())]
        for axis in parsed
    }


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_point_of_every_axis_is_a_faultless_configuration(path, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
    register_schemas()
    golden = tmp_path / "golden.json"
    golden.write_text("[1, 2]")
    name = str(path.relative_to(CONF / "experiment").with_suffix(""))
    needs = [] if name.startswith(("toy/", "quickstart")) else ["teacher.model=m", "prompt.exemplars=train"]
    needs += [f"curation.golden={golden}"] if name == "rationale_filter" else []
    if name.startswith("real/"):
        needs.append("student.hub_id=m")
    if "override /teacher: replay" in path.read_text():
        needs[0] = f"teacher.path={golden}"
    if re.search("override /(objective: distribution|method: on_policy)", path.read_text()):
        needs.append("objective.teacher=owner/name")
    points = axes(path)
    for number in range(max(map(len, points.values()))):  # advance along all axes together
        chosen = {key: values[number % len(values)] for key, values in points.items()}
        other_needs = [need for need in needs if need.partition("=")[0] not in chosen]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            to_config(compose("config", [f"experiment={name}", *other_needs, *(f"{key}={value}" for key, value in chosen.items())]))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_experiment_states_its_command_and_its_cost(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    name = str(path.relative_to(CONF / "experiment").with_suffix(""))
    assert any(re.search(r"\bno cost\.|\bCost: \S", line) for line in head)
    assert any(re.match(rf"#   (srun )?python -m fcot.run (-m )?experiment={name}", line) for line in head)


@pytest.mark.parametrize(
    ("arm", "other"),
    [
        (("toy/distillation", "method=on_policy"), ("toy/distillation", "method=fine_tune_cot")),
        (("distillation", "method=on_policy"), ("distillation", "method=fine_tune_cot")),
        (("real/on_policy",), ("real/distillation",)),
    ],
)
def test_arms_with_and_without_own_samples_take_equally_many_steps(arm, other, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
    register_schemas()

    def steps(experiment, *overrides):
        needs = [] if experiment.startswith("toy/") else ["teacher.model=m"]
        needs += ["student.hub_id=m"] if experiment.startswith("real/") else []
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = to_config(compose("config", [f"experiment={experiment}", "objective.teacher=owner/name", *needs, *overrides]))
        own = config.method.steps if config.method.name == "on_policy" else 0
        assert config.trainer.epochs is None or not own, "an epoch could be shorter than max_steps"
        assert config.trainer.warmup_steps < (own or config.trainer.max_steps)
        return config.trainer.max_steps + own, bool(own)

    n, writes = steps(*arm)
    assert writes
    assert steps(*other) == (n, False)


def test_every_experiment_has_a_toy_form():
    real = {path for path in EXPERIMENTS if path.parent.name == "real"}
    assert {path.stem for path in set(EXPERIMENTS) - real} - {"quickstart", "teacher", "tailored_paper"} == set(TOYS)


@pytest.mark.parametrize("name", TOYS)
def test_the_toy_form_runs(name, run_fcot, tmp_path):
    axes = SMALLER_AXES.get(name, [])
    chosen = {override.partition("=")[0] for override in axes}
    overrides = [*(override for override in SMALLEST if override.partition("=")[0] not in chosen), *axes]
    if name == "table1":  # student=teacher has no such settings
        overrides = [override for override in overrides if not override.startswith("student.")]
    if name == "rationale_length":
        overrides.append("curation.max_words=50,300")
    if name == "distillation":
        wide = run_fcot(*SMALLEST, "student.width=32", "output_dir=teacher")
        assert wide.returncode == 0, wide.stderr
        (teacher,) = tmp_path.glob("teacher/runs/*/student")
        overrides += [f"objective.teacher={teacher}", f"student.tokenizer={teacher}", "seed=0", "method=on_policy"]
        overrides += ["method.max_unfinished=1", "method.steps=2"]
    result = run_fcot("-m", f"experiment=toy/{name}", *overrides, timeout=600)
    assert result.returncode == 0, result.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    jobs = [json.loads(path.read_text()) for path in sweep.glob("jobs/*.json")]
    assert {job["status"] for job in jobs} == {"done"}
    if name == "length_distribution":  # the experiment ends with curation
        assert "words per rationale" in result.stdout
        return
    page = (sweep / "report.html").read_text()
    assert ("rationales per problem (D)" in result.stdout) == (name in ("scaling_diversity",))
    if name.startswith("scaling"):
        assert 'id="scaling"' in page
    if name == "cost":
        assert "Pareto" in result.stdout


def test_a_sweep_over_diversity_buys_each_completion_once(run_fcot, tmp_path):
    overrides = [*SMALLEST, "until=curate"]
    plan = run_fcot("-m", "experiment=toy/scaling_diversity", *overrides, "dry_run=true")
    assert "shared completions counted once" in plan.stdout
    assert "to be bought                       100 (" in plan.stdout, plan.stdout  # 25 train problems, D = 4
    result = run_fcot("-m", "experiment=toy/scaling_diversity", *overrides)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for path in (tmp_path / "outputs" / "store").rglob("*.jsonl") for line in path.read_text().splitlines()]
    first_steps = [row for row in rows if row["root"] is None]
    assert len(first_steps) == 100
    assert len({row["run"] for row in rows}) == 1, "the run with the largest D is first and buys for all"
