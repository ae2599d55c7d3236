"""Resolves a configuration into a run: its problems, split, prompt, teacher and run folder."""

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
from fcot.curation.filters import Rules
from fcot.curation.golden import read_golden
from fcot.llm.budget import SharedBudget
from fcot.llm.plan import Plan
from fcot.llm.requests import Teacher
from fcot.llm.store.folder import StoreFolder, open_folder, readable
from fcot.methods.table import Method, method_of
from fcot.prompts.exemplars import load_exemplars
from fcot.prompts.teacher import TeacherPrompt, Text
from fcot.runs.identity import identity, uses_seed
from fcot.runs.origin import Training, interface_of, trained_note, training_of, untrained_test
from fcot.runs.splitting import make_split, split_in_words, validation_notes
from fcot.runs.vocabulary import writable
from fcot.stages.table import CURATE, Stage
from fcot.student.interface import StudentInterface
from fcot.tasks.check import fault_message, problem_notes, skipped_note, spelling_notes
from fcot.tasks.hints import hints
from fcot.tasks.leaks import without_leaks
from fcot.tasks.loaders import Data
from fcot.tasks.splits import Split
from fcot.tasks.table import Task, with_numbers
from fcot.teacher import replay


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        config: The checked configuration.
        task: The task with its answer rule.
        problems: All problems by sample index.
        split: Sample indices of train, validation and test. Test problems that a prompt shows as exemplars are left out.
        exemplars_left_out: Number of test problems that were left out because a prompt shows them. Paper A's few-shot accuracies
            imply that it left them out too.
        order_known: Whether the rows were verified to be in the order that the split's indices refer to.
        temperature: The teacher's temperature, resolved.
        prompt: The teacher's prompt with its exemplars.
        teacher: The teacher that gets requests; None for ``teacher=replay`` and for methods without a teacher.
        replayed: The completions of ``teacher=replay``; None for other teachers.
        teacher_name: The model that wrote the rationales; None for methods without a teacher.
        precision: Lightning's name of the precision, resolved.
        outputs: The output folder.
        shared_budget: The budget of the sweep that the run is a job of; None without one.
        origin: With ``method=as_trained``, how the finished student was trained; None for other methods.
        trained_left_out: Number of test problems that were left out because the finished student was trained on them.
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
    origin: StudentInterface | None = None
    trained_left_out: int = 0

    @property
    def method(self) -> Method:
        """The entry of the run's method in the table of methods, with the stages that its options leave."""
        return method_of(self.config)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The run's stages in order. A stage that each round repeats is listed once."""
        stages = self.method.stages_of(self.config.student.remote)
        if CURATE in stages:
            at = stages.index(CURATE) + 1
            stages = (*stages[:at], *self.config.curation.stages, *stages[at:])
        before_training = getattr(self.config.objective, "stages", ()) if self.trains else ()
        at = next((number for number, stage in enumerate(stages) if stage.name in ("fine_tune", "train")), len(stages))
        return (*stages[:at], *before_training, *stages[at:])

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
        """Whether the teacher itself is evaluated as the student."""
        return self.config.student.is_teacher

    @property
    def speaks_chat(self) -> bool:
        """Whether the teacher's prompts consist of chat messages."""
        return getattr(self.config.teacher, "endpoint", "completions") == "chat"

    def prompt_for(self, question: str) -> Text:
        """The first request to the teacher about a question: a text, or chat messages."""
        return self.prompt.first_request(question, self.task.rule, self.speaks_chat)

    @cached_property
    def run_id(self) -> str:
        """The run's name: readable parts and a hash of its identity. It contains the seed if the result depends on it."""
        config = self.config
        parts = [config.dataset.name, config.student.name, config.method.name]
        if self.uses_rationales:
            parts.append(f"D{config.diversity}")
        if uses_seed(self):
            parts.append(f"seed{config.seed}")
        return "-".join([*map(readable, parts), self._hashes[0]])

    @property
    def setting(self) -> str:
        """A hash that is equal for runs that differ only in their seed, or in the seed of the run that trained their student."""
        return self._hashes[1]

    @cached_property
    def earlier_training(self) -> Training | None:
        """The run that trained the student before; None if it is not known."""
        path = self.config.student.path if self.config.student.pretrained else None
        return None if path is None else training_of(Path(path))

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        """Hashes of the run and of its setting. The identity itself is large, and a sweep's plan would keep it for each job."""
        parts = identity(self)
        of_all_seeds = parts | {"seed": None}
        if self.earlier_training is not None:
            of_all_seeds["student"] = parts["student"] | {"content": self.earlier_training.setting}
        return fingerprint(parts)[:10], fingerprint(of_all_seeds)[:10]

    @property
    def directory(self) -> RunDirectory:
        """The run folder."""
        return RunDirectory(self.outputs / "runs" / self.run_id)

    @property
    def store(self) -> StoreFolder:
        """The completion store's folder for this task, teacher and prompt."""
        return self.store_of(self.prompt.name)

    def store_of(self, prompt: str) -> StoreFolder:
        """The completion store's folder for this task and teacher, and the prompt with a name."""
        assert self.teacher_name is not None
        parts = (self.task.name, self.teacher_name, prompt)
        return open_folder(self.store_dir / Path(*map(readable, parts)))

    @property
    def store_dir(self) -> Path:
        """The completion store of all tasks, teachers and prompts."""
        return Path(self.config.store_dir) if self.config.store_dir else self.outputs / "store"

    @cached_property
    def rules(self) -> Rules:
        """The rules by which completions become reasoning samples."""
        curation = self.config.curation
        settings = {name: value for filter_name in curation.filters for name, value in curation.filter_settings(filter_name).items()}
        golden = read_golden(Path(curation.golden), self.problems) if curation.golden else {}
        if unknown := sorted(set(golden) - set(self.problems)):
            raise FcotError(
                f"curation.golden={curation.golden}: {len(unknown)} of its sample indices are not in the data, the first is {unknown[0]}; "
                f"{self.task.name} has {len(self.problems):,} problems here"
            )
        return Rules(
            tuple(curation.filters), curation.labels, self.config.prompt.thinking, writable(self.config), settings | {"golden": golden}
        )  # fmt: skip

    @cached_property
    def request_text(self) -> str:
        """The template of the method's own requests to the teacher. It is read once, because its file may change during the run."""
        return self.config.method.request_text  # type: ignore[no-any-return]

    @cached_property
    def judge_request(self) -> str:
        """The template of the requests to a judge of rationales. It is read once, because its file may change during the run."""
        return self.config.curation.judge_request

    @property
    def token_cache(self) -> Path:
        """Folder of tokenized samples, shared by all runs."""
        return self.outputs / "cache" / "tokens"

    @property
    def plan(self) -> Plan:
        """The requests that generate the run's completions."""
        assert self.teacher is not None
        options = self.config.teacher
        budgeted = hasattr(options, "budget_usd")
        return Plan(
            self.teacher, self.prompt, self.task.rule, self.config.diversity, self.run_id, first_slot(self.config),
            resample_identical=getattr(options, "resample_identical", False), price=options.price(),
            budget_usd=options.budget_usd if budgeted else None, shared_budget=self.shared_budget if budgeted else None,
            top_logprobs=getattr(options, "top_logprobs", None),
        )  # fmt: skip

    def select(self, indices: list[int]) -> list[Problem]:
        """The problems with these sample indices, in the order of ``indices``."""
        return [self.problems[index] for index in indices]


def resolve(config: Config) -> Run:
    """Load and split the data, build the prompt and the teacher, and resolve the settings that depend on the machine.

    Args:
        config: A configuration that passed all checks (:func:`fcot.config.checks.to_config`).

    Raises:
        FcotError: The data, the split or the prompt cannot be used.
    """
    task = task_of(config)
    problems = {problem.sample_index: problem for problem in problems_of(config, task)}
    split, order_known = make_split(config, task, problems)
    method = method_of(config)
    option = split_in_words(config)
    remedy = "try split-mode=sample" if option.startswith("split-mode") else "write {part} into its rows"
    if method.trains and not split.train:
        raise FcotError(f"dataset={task.name}: the data has no train problems with {option}; {remedy.format(part='train')}")
    if not split.test and config.until == "evaluate":
        raise FcotError(
            f"dataset={task.name}: the data has no test problems with {option}; {remedy.format(part='test')}, or stop before evaluation: "
            "until=train"
        )
    temperature = temperature_of(config)
    prompt = _prompt(config, task, {index: problems[index] for index in split.train})
    exemplars_left_out = trained_left_out = 0
    if method.prompted or method.uses_rationales:
        test = without_leaks(split.test, problems, prompt, config.method.request_text, order_known)
        if split.test and not test and config.until == "evaluate":
            raise FcotError("every test problem is in the prompt; use other exemplars (prompt.exemplars) or another template (prompt.path)")
        exemplars_left_out, split = len(split.test) - len(test), replace(split, test=test)
    origin = None
    if method.own_format:
        origin = interface_of(config.student)
        test = untrained_test(config.student, origin, task.name, problems, split)
        if split.test and not test:
            raise FcotError(f"the student was trained on all {len(split.test):,} test problems: evaluate it on another task (dataset=...)")
        trained_left_out, split = len(split.test) - len(test), Split([], [], test)
    teacher, replayed, teacher_name = None, None, None
    of_objective = method.trains and getattr(config.objective, "needs_teacher", False)
    needs_teacher = method.uses_rationales or config.student.is_teacher or of_objective
    if needs_teacher and not config.teacher.generates:
        replayed, teacher_name = _replay(config, task, problems, split)
    elif needs_teacher:
        teacher = config.teacher.build(config, temperature)
        teacher_name = str(teacher.identity["model"])
    if prompt.system and needs_teacher and (teacher is None or not teacher.chat):
        raise FcotError(f"prompt.system: teacher={config.teacher.name} gets no chat messages, so there is no system turn; leave it out")
    return Run(
        config, task, problems, split, exemplars_left_out, order_known, temperature, prompt, teacher, replayed, teacher_name,
        _precision(config.trainer.precision), Path(config.output_dir), origin=origin, trained_left_out=trained_left_out,
    )  # fmt: skip


def config_yaml(composed: DictConfig, run: Run, overrides: Sequence[str], searchpath: Sequence[str]) -> str:
    """The text of the run folder's ``config.yaml``: the command that makes the run, as a comment, and the configuration.

    Args:
        composed: The composed configuration, not resolved.
        run: The run of this configuration.
        overrides: The overrides on the command line.
        searchpath: Folders of configuration files that the command adds, as URLs; empty without any.
    """
    searchpath_override = [f"hydra.searchpath=[{','.join(searchpath)}]"] if searchpath else []
    without_until = (override for override in overrides if not override.startswith("until="))
    command = shlex.join(["python", "-m", "fcot.run", *searchpath_override, *without_until])
    config = composed.copy()
    if "temperature" in config.teacher:
        config.teacher.temperature = run.temperature
    comment = re.sub(rf"\r\n|[{LINE_ENDS}]", r"\g<0># ", command)  # values such as a template may contain line ends
    return f"# {comment}\n{OmegaConf.to_yaml(config, resolve=True)}"


def _prompt(config: Config, task: Task, train: Mapping[int, Problem]) -> TeacherPrompt:
    prompt = config.prompt
    template = prompt.template
    if prompt.path is not None:
        template = Path(prompt.path).read_text(encoding="utf-8-sig")
        if "{question}" not in template:
            raise FcotError(f"prompt.path={prompt.path}: the template must contain {{question}}")
    assert template is not None
    zero_shot = TeacherPrompt(
        prompt.name, template, prompt.answer_triggers, prompt.two_steps, prompt.rationale_tokens, prompt.answer_tokens, tuple(prompt.stop),
        system=prompt.system,
    )  # fmt: skip
    if prompt.exemplars is None or "{exemplars}" not in template:
        return zero_shot
    return replace(zero_shot, exemplars=load_exemplars(prompt.exemplars, prompt.n_exemplars, task.name, zero_shot, task.rule, train))


def task_of(config: Config) -> Task:
    """The task of a configuration, with its rule for reading answers."""
    return with_numbers(config.dataset.task(), config.prompt.numbers)


def data_of(config: Config, task: Task) -> Data:
    """The data of a configuration: all problems, and the faults of rows."""
    data: Data = config.dataset.load(task, config.curation.labels != "gold")
    return data


def problems_of(config: Config, task: Task) -> list[Problem]:
    """All problems of a configuration, in the order of the data.

    Raises:
        FcotError: Rows are faulty; the message has all of them. With ``dataset.on_invalid=skip``: no row is without a fault.
    """
    data = data_of(config, task)
    skips = config.dataset.own and config.dataset.on_invalid == "skip"
    if data.faults and not (skips and data.problems):
        raise FcotError(fault_message(data, task, config.dataset.own))
    return list(data.problems)


def data_notes(run: Run) -> list[str]:
    """Sentences that belong before anything is paid: those of :func:`knowledge_warnings` and of :func:`own_data_notes`."""
    return [*knowledge_warnings(run), *own_data_notes(run)]


def knowledge_warnings(run: Run) -> list[str]:
    """A warning about a student that is trained further and knows test problems already."""
    student = run.config.student
    if not (run.trains and student.pretrained and student.path):
        return []
    known = trained_note(Path(student.path), run.task.name, run.problems, run.split)
    return [] if known is None else [known]


def own_data_notes(run: Run) -> list[str]:
    """Sentences on what may be wrong with own data, and on where its split comes from."""
    dataset, split = run.config.dataset, run.split
    if not dataset.own:
        return []
    data = data_of(run.config, run.task)
    notes = [
        *skipped_note(data), *hints(data, run.task, dataset.columns), *problem_notes(data, run.task),
        *spelling_notes(data, _compared_by(run)), *validation_notes(run.config, split),
    ]  # fmt: skip
    if dataset.split_column is not None:
        sizes = f"{len(split.train):,} train, {len(split.validation):,} validation, {len(split.test):,} test"
        notes.append(f"the split is that of the column {dataset.split_column!r}: {sizes}")
    return [f"data: {note}" for note in notes]


def _compared_by(run: Run) -> str | None:
    """The option by which the training compares kept completions of the teacher with rejected ones; None if it does not."""
    objective, reflection = run.config.objective, getattr(run.config.method, "reflection", None)
    if not run.trains:
        return None
    if getattr(objective, "compares_rejected", False):
        return f"objective={objective.name}"
    return f"method.reflection.objective={reflection.objective}" if reflection is not None and reflection.compares_rejected else None


def _replay(config: Config, task: Task, problems: Mapping[int, Problem], split: Split) -> tuple[list[Completion], str]:
    """The completions of ``teacher=replay`` that the run uses, and the name of the model that wrote them."""
    path = Path(config.teacher.path)
    questions = {index: problem.question for index, problem in problems.items()}
    completions, model = replay.read_completions(path, task, questions)
    if config.student.is_teacher:
        indices, diversity, start = split.test, config.student.self_consistency, 0
    else:
        indices, diversity, start = split.train, config.diversity, first_slot(config)
    return replay.choose(completions, [problems[index] for index in indices], diversity, str(path), start), model


def _precision(configured: str) -> str:
    """Lightning's name of the precision; ``auto`` depends on this machine's GPU."""
    if configured != "auto":
        return configured
    return "bf16-mixed" if native_bf16() else "32-true"
