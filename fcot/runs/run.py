"""A run, resolved: from the configuration to problems, split, teacher data, and the directory they determine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fcot.base.errors import FcotError
from fcot.base.files import LINE_ENDS, fingerprint
from fcot.base.ranks import native_bf16
from fcot.base.records import Completion, Problem
from fcot.base.run_folder import RunDirectory
from fcot.config.sampling import first_slot, temperature_of
from fcot.config.schema import Config
from fcot.curation.filters import Rules, read_golden
from fcot.llm.budget import SharedBudget
from fcot.llm.plan import Plan
from fcot.llm.requests import Teacher
from fcot.llm.store.folder import StoreFolder, open_folder, readable
from fcot.methods.table import METHODS, Method
from fcot.prompts.exemplars import load_exemplars
from fcot.prompts.teacher import TeacherPrompt
from fcot.runs.identity import identity, uses_seed
from fcot.runs.splitting import make_split
from fcot.runs.vocabulary import writable
from fcot.stages.table import Stage
from fcot.tasks.leaks import without_leaks
from fcot.tasks.splits import (  # fmt: skip
    Split,
)
from fcot.tasks.table import Task, with_numbers
from fcot.teacher import replay


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        config: The checked configuration.
        task: The task with its answer rule.
        problems: All problems by sample index.
        split: Sample indices of train, validation and test; without the test problems that the teacher or the student is shown as examples.
        exemplars_left_out: How many those are (paper A's few-shot fractions imply it).
        order_known: Whether the rows were verified to stand in the order that index splits presuppose.
        temperature: The teacher's, resolved.
        prompt: The teacher's, exemplars loaded.
        teacher: Who is asked, None for ``teacher=replay`` and for methods without a teacher.
        replayed: The completions of ``teacher=replay``, None for teachers that are asked.
        teacher_name: Who wrote the rationales, None for methods without a teacher.
        precision: Lightning's name, resolved.
        outputs: The output folder.
        shared_budget: That of the sweep it is a job of, None without one.
    """

    config: Config
    task: Task
    problems: dict[int, Problem]
    split: Split
    exemplars_left_out: int
    order_known: bool
    temperature: float
    prompt: TeacherPrompt
    teacher: Teacher | None
    replayed: list[Completion] | None
    teacher_name: str | None
    precision: str
    outputs: Path
    shared_budget: SharedBudget | None = None

    @property
    def method(self) -> Method:
        """How the student is made."""
        return METHODS[self.config.method.name]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The run's stages in order; those of several rounds once."""
        return self.method.stages_of(self.config.student.remote)

    @property
    def uses_rationales(self) -> bool:
        """Whether the method trains on rationales."""
        return self.method.uses_rationales

    @property
    def trains(self) -> bool:
        """Whether the method trains at all."""
        return self.method.trains

    @property
    def is_teacher(self) -> bool:
        """Whether the teacher itself stands in the student's place."""
        return self.config.student.is_teacher

    @cached_property
    def run_id(self) -> str:
        """Readable parts and a hash over everything that changes a prediction; the seed where the result depends on it."""
        config = self.config
        parts = [config.dataset.name, config.student.name, config.method.name]
        if self.uses_rationales:
            parts.append(f"D{config.diversity}")
        if uses_seed(self):
            parts.append(f"seed{config.seed}")
        return "-".join([*map(readable, parts), self._hashes[0]])

    @property
    def setting(self) -> str:
        """What runs that differ in nothing but their seed have in common, as a hash."""
        return self._hashes[1]

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        """Of the run and of its setting; not the identity itself, which is large and which a plan would hold for each job."""
        whole = identity(self)
        return fingerprint(whole)[:10], fingerprint(whole | {"seed": None})[:10]

    @property
    def directory(self) -> RunDirectory:
        """Where the run leaves its files."""
        return RunDirectory(self.outputs / "runs" / self.run_id)

    @property
    def store(self) -> StoreFolder:
        """The completion store's folder for this task, teacher and prompt."""
        return self.store_of(self.prompt.name)

    def store_of(self, prompt: str) -> StoreFolder:
        """The same for another prompt."""
        assert self.teacher_name is not None
        parts = (self.task.name, self.teacher_name, prompt)
        return open_folder(self.outputs / "store" / Path(*map(readable, parts)))

    @cached_property
    def rules(self) -> Rules:
        """What becomes a reasoning sample."""
        asked = self.config.curation
        settings = {name: value for filter_name in asked.filters for name, value in asked.filter_settings(filter_name).items()}
        golden = read_golden(Path(asked.golden)) if asked.golden else {}
        if unknown := sorted(set(golden) - set(self.problems)):
            raise FcotError(
                f"curation.golden={asked.golden}: {len(unknown)} of its sample indices are not in the data, the first is {unknown[0]}; "
                f"{self.task.name} has {len(self.problems):,} problems here"
            )
        return Rules(
            tuple(asked.filters), asked.labels, self.config.prompt.thinking, writable(self.config), settings | {"golden": golden}
        )  # fmt: skip

    @cached_property
    def request_text(self) -> str:
        """The text of the method's own requests to the teacher, read once: its file may change while the run works."""
        return self.config.method.request_text  # type: ignore[no-any-return]

    @property
    def token_cache(self) -> Path:
        """Folder of tokenised samples that runs share."""
        return self.outputs / "cache" / "tokens"

    @property
    def plan(self) -> Plan:
        """What is asked of the teacher."""
        assert self.teacher is not None
        options = self.config.teacher
        budgeted = hasattr(options, "budget_usd")
        return Plan(
            self.teacher, self.prompt, self.task.rule, self.config.diversity, self.run_id, first_slot(self.config),
            resample_identical=getattr(options, "resample_identical", False), price=options.price(),
            budget_usd=options.budget_usd if budgeted else None, shared_budget=self.shared_budget if budgeted else None,
        )  # fmt: skip

    def select(self, indices: list[int]) -> list[Problem]:
        """Problems by sample index, in that order."""
        return [self.problems[index] for index in indices]


def resolve(config: Config) -> Run:
    """Load the data, split it, and settle what depends on the machine.

    Args:
        config: Checked.
    """
    task = task_of(config)
    problems = {problem.sample_index: problem for problem in problems_of(config, task)}
    split, order_known = make_split(config, task, problems)
    method = METHODS[config.method.name]
    if method.trains and not split.train:
        raise FcotError(
            f"dataset={task.name}: this data has no train problems under split-mode={config.split_mode.name}; try split-mode=sample"
        )
    if not split.test and config.until == "evaluate":
        raise FcotError(f"dataset={task.name}: this data has no test problems under split-mode={config.split_mode.name}")
    temperature = temperature_of(config)
    prompt = _prompt(config, task, {index: problems[index] for index in split.train})
    n_test = len(split.test)
    if method.prompted or method.uses_rationales:
        split = replace(split, test=without_leaks(split.test, problems, prompt, config.method.request_text, order_known))
        if n_test and not split.test and config.until == "evaluate":
            raise FcotError(
                "every test problem stands in the prompt; take other exemplars (prompt.exemplars) or another template (prompt.path)"
            )
    teacher, replayed, teacher_name = None, None, None
    asks = method.uses_rationales or config.student.is_teacher
    if asks and not config.teacher.generates:
        replayed, teacher_name = _replay(config, task, problems, split)
    elif asks:
        teacher = config.teacher.build(config, temperature)
        teacher_name = str(teacher.identity["model"])
    return Run(
        config, task, problems, split, n_test - len(split.test), order_known, temperature, prompt, teacher, replayed, teacher_name,
        _precision(config.trainer.precision), Path(config.output_dir),
    )  # fmt: skip


def kept_config(composed: DictConfig, run: Run, overrides: Sequence[str], searchpath: Sequence[str]) -> str:
    """The command that makes the run, as a comment, and its configuration as YAML.

    Args:
        composed: The configuration, not resolved.
        run: The run it came to.
        overrides: Of the command.
        searchpath: Folders of further configuration that the command named, as URLs.

    """
    added = [f"hydra.searchpath=[{','.join(searchpath)}]"] if searchpath else []
    kept = (word for word in overrides if not word.startswith("until="))
    command = shlex.join(["python", "-m", "fcot.run", *added, *kept])
    settled = composed.copy()
    if "temperature" in settled.teacher:
        settled.teacher.temperature = run.temperature
    comment = re.sub(rf"\r\n|[{LINE_ENDS}]", r"\g<0># ", command)  # in a value, such as a template's
    return f"# {comment}\n{OmegaConf.to_yaml(settled, resolve=True)}"


def _prompt(config: Config, task: Task, train: Mapping[int, Problem]) -> TeacherPrompt:
    prompt = config.prompt
    template = prompt.template
    if prompt.path is not None:
        template = Path(prompt.path).read_text(encoding="utf-8-sig")
        if "{question}" not in template:
            raise FcotError(f"prompt.path={prompt.path}: the template must contain {{question}}")
    assert template is not None
    made = TeacherPrompt(
        prompt.name, template, prompt.answer_triggers, prompt.two_steps, prompt.rationale_tokens, prompt.answer_tokens, tuple(prompt.stop)
    )
    if prompt.exemplars is None or "{exemplars}" not in template:
        return made
    return replace(made, exemplars=load_exemplars(prompt.exemplars, prompt.n_exemplars, task.name, made, task.rule, train))


def task_of(config: Config) -> Task:
    """The task of a configuration, with the rule by which its answers are read."""
    return with_numbers(config.dataset.task(), config.prompt.numbers)


def problems_of(config: Config, task: Task) -> list[Problem]:
    """All problems of a configuration, in the order of its data."""
    problems: list[Problem] = config.dataset.problems(task, config.curation.labels != "gold")
    return problems


def _replay(config: Config, task: Task, problems: Mapping[int, Problem], split: Split) -> tuple[list[Completion], str]:
    path = Path(config.teacher.path)
    questions = {index: problem.question for index, problem in problems.items()}
    completions, model = replay.read_completions(path, task, questions)
    if config.student.is_teacher:
        wanted, diversity, first = split.test, config.student.self_consistency, 0
    else:
        wanted, diversity, first = split.train, config.diversity, first_slot(config)
    return replay.choose(completions, [problems[index] for index in wanted], diversity, str(path), first), model


def _precision(asked: str) -> str:
    if asked != "auto":
        return asked
    return "bf16-mixed" if native_bf16() else "32-true"
