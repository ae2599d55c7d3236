"""The student's stages: train and evaluate. Every rank runs them; the first one writes files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from transformers import PreTrainedTokenizerBase

from fcot.base.console import progress, say
from fcot.base.errors import NotFinite
from fcot.base.files import fingerprint, read_jsonl, write_folder
from fcot.base.ranks import World
from fcot.base.records import CuratedCompletion, TrainingSample, from_row
from fcot.base.run_folder import RunDirectory
from fcot.curation.filters import MISTAKEN
from fcot.decoding.models import load_tokenizer_alone
from fcot.evaluation import scoring
from fcot.evaluation.patience import out_of_patience
from fcot.objectives.config import BuildsObjectives
from fcot.prompts.student import Demonstration, StudentFormat
from fcot.runs.run import Run
from fcot.stages.answering import answer_problems, predict, prompt_student, text_format, voting
from fcot.stages.contexts import teacher_prompts
from fcot.stages.table import Context, Summary
from fcot.student.batching import StepSampler
from fcot.student.checkpoints import Checkpoints, checkpoint_bytes, is_sharded, trained_weights
from fcot.student.config import PretrainedStudentConfig, TrainerConfig
from fcot.student.continued import Continued, Moments, save_moments
from fcot.student.data import TrainingData
from fcot.student.decoding import check_calculator
from fcot.student.interface import StudentInterface, read_interface, write_interface
from fcot.student.loading import Lora, Student, add_lora, build_tiny, load_student, save_student, tokenizer_identity, train_tokenizer
from fcot.student.objective import Objective
from fcot.student.own import OwnSamples, RenewedRows
from fcot.student.tokenization import Tokenized, tokenize, tokenize_once
from fcot.student.training import History, Hooks, plan
from fcot.student.training import train as fit_student


@dataclass(frozen=True)
class TrainingJob:
    """One training of a student: a run's only one, or a round's.

    Attributes:
        directory: Directory of the training's files.
        samples: The training samples.
        demonstrations: Demonstrations that stand before each question.
        start: Folder of the student to continue from; None: start with the configured student.
        form: The student's format; None: that of the run's method.
        recipe: The options of the training; None: the run's.
        objective: Builds the terms of the loss; None: the run's objective does.
        method_objectives: Builds the objectives that the method adds to the run's objective; None: it adds none.
        own: Builds the samples that the student writes itself while it trains; None: it writes none.
        continued: How the training continues earlier ones.
        keeps_moments: Whether the optimizer's moments are kept with the chosen student, for a training that continues this one.
        title: Title of the progress line.
    """

    directory: RunDirectory
    samples: Sequence[TrainingSample]
    demonstrations: tuple[Demonstration, ...] = ()
    start: Path | None = None
    form: StudentFormat | None = None
    recipe: TrainerConfig | None = None
    objective: BuildsObjectives | None = None
    method_objectives: Callable[[TrainingData], Sequence[Objective]] | None = None
    own: Callable[[TrainingData, RenewedRows, StepSampler], OwnSamples] | None = None
    continued: Continued = Continued()  # noqa: RUF009 - frozen
    keeps_moments: bool = False
    title: str = "train"


def train(context: Context) -> Summary:
    """Train on the run's samples."""
    run = context.run
    return train_job(context, TrainingJob(run.directory, training_samples(run)))


def train_job(context: Context, job: TrainingJob) -> Summary:
    """Train a student with evaluations in between; the chosen student becomes ``student/``.

    With validation problems, the student with the best validation accuracy is chosen, the latest among equals. Without them, the student
    after the last step is chosen. ``trainer.best_epoch`` also evaluates the test problems each time (paper A's figure), which does not
    affect the choice.
    """
    run, world, config = context.run, context.world, job.recipe or context.run.config.trainer
    student = build_student(run, job.samples, job.start)
    form = replace(job.form or text_format(run, student), demonstrations=job.demonstrations)
    stored = training_rows(run, student, form, job.samples)
    recipe = replace(config, precision=run.precision)
    layout, sampler, n_steps = plan(student, stored, recipe, run.config.seed)
    renewed = RenewedRows(stored)
    rows = renewed if job.own else stored
    from fcot.stages.scoring import stored_distributions  # it imports this module

    data = TrainingData(
        student, form, job.samples, rows, layout, stored=stored_distributions(run), rejected=lambda: rejected_samples(run, job.directory),
        precision=run.precision, world=world, seed=run.config.seed, first_own=len(stored) if job.own else None,
        teacher_prompts=partial(teacher_prompts, run, job.samples), own_top=renewed.top,
    )  # fmt: skip
    objective = job.objective or run.config.objective
    objectives = [*objective.build(data), *(job.method_objectives(data) if job.method_objectives else ())]
    own = job.own(data, renewed, sampler) if job.own else None

    def evaluate(history: History) -> Summary:
        entry: Summary = {}
        if run.split.validation:
            accuracy = scoring.accuracy(predict(run, student, form, run.split.validation, world)) or 0.0
            entry["validation_accuracy"] = accuracy
            bar.watch(f"validation accuracy {accuracy:.1%}")
        if config.best_epoch:
            entry["test_accuracy"] = scoring.accuracy(predict(run, student, form, run.split.test, world))
        if run.split.validation and _is_best(history, entry):
            save(run, student, form, job.directory, world)  # comes last, because it may shard the parameters again
        return entry

    def keep_moments(history: History, entry: Summary, moments: Moments) -> None:
        if world.rank == 0 and (not run.split.validation or _is_best(history, entry)):
            save_moments(job.directory.moments, moments)

    checkpoints = Checkpoints(job.directory.checkpoints, config.checkpoint_every_s, checkpoint_bytes(student.model))
    with _set_aside_if_not_finite(checkpoints, job.directory.student, world), progress(job.title, n_steps, "steps") as bar:
        report = fit_student(
            student, rows, objectives, recipe,
            Hooks(
                evaluate, lambda history: out_of_patience(history, config.patience), bar.resume, bar.advance,
                keep_moments if job.keeps_moments else None,
            ),
            seed=run.config.seed, own=own, continued=job.continued, checkpoints=checkpoints,
            log_folder=None if run.config.logger.name == "none" else job.directory.logs,
            loggers=context.tracker.loggers(job.directory) if context.tracker else (), world=world,
        )  # fmt: skip
    if not run.split.validation:
        save(run, student, form, job.directory, world)
    best = max((entry["validation_accuracy"] for entry in report.history), default=None) if run.split.validation else None
    return {
        "n_reasoning_samples": len(stored) if run.uses_rationales else 0,
        "n_steps": report.n_steps,
        "samples_per_second": round(report.n_samples / max(report.train_seconds, 1e-9), 2),
        "padding_efficiency": round(report.n_tokens / max(1, report.n_padded), 4),
        "checkpoint": "validation" if run.split.validation else "last",
        "validation_accuracy": best,
        "best_test_accuracy": max((entry["test_accuracy"] for entry in report.history), default=None) if config.best_epoch else None,
        "cut_prompts": stored.cut_prompts,
        "cut_completions": stored.cut_completions,
        "unknown_token_share": stored.unknown_share,
        "history": report.history,
        **{name: fact for part in (*objectives, *([own] if own else [])) for name, fact in part.facts().items()},
        **({"scored_tokens": report.n_tokens} if getattr(objective, "is_local", False) else {}),
    }


@contextlib.contextmanager
def _set_aside_if_not_finite(checkpoints: Checkpoints, student: Path, world: World) -> Iterator[None]:
    """Leave no ``student/`` folder, not even an earlier checkpoint's, if the training fails because a value is not finite."""
    if world.rank == 0:
        checkpoints.take_back(student)
    try:
        yield
    except NotFinite:
        if world.rank == 0:
            checkpoints.set_aside(student)
        raise


def _is_best(history: History, entry: Summary) -> bool:
    """Whether an evaluation's validation accuracy is as good as the best one before."""
    best = max((before["validation_accuracy"] for before in history), default=0.0)
    return bool(entry["validation_accuracy"] >= best)


def evaluate(context: Context) -> Summary:
    """Answer the test problems greedily or by a majority vote, and score the answers.

    The student is the one that was trained in the step's directory. Methods that do not train use the configured student.
    """
    run, directory, world = context.run, context.directory, context.world
    student = load_trained(run, directory) if run.trains else build_student(run)
    form: scoring.Form
    with progress("evaluate", len(run.split.test) * run.config.student.self_consistency, "answers") as bar:
        if run.method.prompted:
            form = run.prompt
            answers, facts = prompt_student(run, student, run.split.test, world, voting(run), bar.advance)
        else:
            form = read_interface(directory.student).format if run.trains else text_format(run, student)
            answers, facts = answer_problems(run, student, form, run.split.test, world, voting(run), bar.advance)
    if world.rank > 0:
        return {}
    size = {"n_parameters": student.model.num_parameters()}  # type: ignore[operator]
    return scoring.report(answers, form, run.task.rule, directory) | facts | size


def load_trained(run: Run, directory: RunDirectory) -> Student:
    """Load the student that a training wrote into this directory."""
    return load_student(str(directory.student), chat=_uses_chat_template(run))


def build_student(run: Run, samples: Sequence[TrainingSample] | None = None, start: Path | None = None) -> Student:
    """Build the student before training: from a folder, from the hub, or from scratch with the run's seed.

    Args:
        run: The run.
        samples: Training samples, on which the tokenizer of a student from scratch is trained; None: the run's samples.
        start: Folder of the student to continue from; None: start with the configured student.
    """
    config = run.config.student
    pl.seed_everything(run.config.seed, verbose=False)  # also for the adapters
    if config.pretrained:
        source = str(start) if start else config.path or str(config.hub_id)
        student = load_student(source, None if start else config.revision, chat=config.chat_template)
        if config.calculator:
            check_calculator(student)
        lora = lora_of(config) if run.trains else None
        return student if lora is None else add_lora(student, lora)
    if start is not None:
        return load_student(str(start))
    tokenizer: PreTrainedTokenizerBase
    if config.tokenizer is None:
        samples = training_samples(run) if samples is None else samples
        texts = [text for sample in samples for text in (sample.question, f"{sample.rationale or ''} {sample.answer}")]
        tokenizer = train_tokenizer(texts, config.vocab_size)
    else:
        tokenizer = load_tokenizer_alone(config.tokenizer)
    return build_tiny(
        config.architecture, tokenizer, width=config.width, layers=config.layers, heads=config.heads,
        max_length=config.max_prompt_tokens + max(config.max_completion_tokens, config.max_new_tokens),
    )  # fmt: skip


def lora_of(config: PretrainedStudentConfig) -> Lora | None:
    """The settings of the adapters; None if all parameters are trained."""
    lora = config.lora
    targets = None if lora.targets is None else tuple(lora.targets)
    return None if lora.rank is None else Lora(lora.rank, lora.alpha, lora.dropout, targets)


def _uses_chat_template(run: Run) -> bool:
    return not run.config.student.from_scratch and bool(run.config.student.chat_template)


def training_samples(run: Run) -> list[TrainingSample]:
    """The training samples of a run: its reasoning samples, or all train problems if the method uses no rationales."""
    if not run.uses_rationales:
        return [TrainingSample(problem.sample_index, problem.question, problem.answer) for problem in run.select(run.split.train)]
    return [sample_of(run, row) for row in kept_rows(run.directory)]


def sample_of(run: Run, row: CuratedCompletion, weight: float = 1.0) -> TrainingSample:
    """Turn a kept completion into a training sample."""
    return TrainingSample(
        row.sample_index, run.problems[row.sample_index].question, row.answer, row.rationale, weight, row.completion_index
    )


def kept_rows(directory: RunDirectory) -> list[CuratedCompletion]:
    """Read the completions that curation kept in this directory of a run or round."""
    return [from_row(CuratedCompletion, row) for row in read_jsonl(directory.curated) if row["kept"]]


def rejected_samples(run: Run, directory: RunDirectory) -> list[TrainingSample]:
    """The wrong completions in this directory of a run or round: curation rejected their answer or an equation.

    Their answer is the one that they reach, not the label.
    """
    rows = (from_row(CuratedCompletion, row) for row in read_jsonl(directory.curated) if row["reason"] in MISTAKEN)
    return [sample_of(run, replace(row, answer=row.prediction)) for row in rows if row.prediction is not None]


def tokenized(run: Run, student: Student, form: StudentFormat, texts: Sequence[tuple[str, str]]) -> Tokenized:
    """Tokenize questions and completions for training, through the cache of the output folder."""
    limits = run.config.student
    name = fingerprint(
        [2, texts, asdict(form), limits.max_prompt_tokens, limits.max_completion_tokens, tokenizer_identity(student), student.chat]
    )
    return tokenize_once(
        run.token_cache / f"{name[:16]}.arrow",
        lambda: tokenize(student, form, texts, max_prompt=limits.max_prompt_tokens, max_completion=limits.max_completion_tokens),
    )


def training_rows(run: Run, student: Student, form: StudentFormat, samples: Sequence[TrainingSample]) -> Tokenized:
    """Tokenize the training samples; warn of cut texts and unknown tokens."""
    limits = run.config.student
    rows = tokenized(run, student, form, [(sample.question, form.completion(sample.answer, sample.rationale)) for sample in samples])
    if rows.cut_prompts:
        say(f"warning: {rows.cut_prompts} questions lost their beginning at student.max_prompt_tokens={limits.max_prompt_tokens}")
    if rows.cut_completions:
        say(
            f"warning: {rows.cut_completions} of {len(samples)} completions were cut at "
            f"student.max_completion_tokens={limits.max_completion_tokens}: they end without an answer"
        )
    if rows.unknown_share:
        say(f"warning: the tokenizer cannot represent {rows.unknown_share:.2%} of the training tokens")
    return rows


def save(run: Run, student: Student, form: StudentFormat, directory: RunDirectory, world: World) -> None:
    """Write the student to the ``student/`` folder, in the format of transformers, with its interface (``fcot.json``).

    All ranks take part in gathering sharded parameters; the first one writes.
    """
    weights = trained_weights(student.model) if is_sharded(student.model) else None
    if world.rank > 0:
        return
    limits = run.config.student
    interface = StudentInterface(
        run.task.name, run.config.method.name, form, run.task.rule, student.chat, limits.max_prompt_tokens, limits.max_new_tokens,
        limits.calculator,
    )  # fmt: skip

    def fill(folder: Path) -> None:
        save_student(student, folder, limits.max_new_tokens, weights)
        write_interface(folder, interface)

    write_folder(directory.student, fill)
