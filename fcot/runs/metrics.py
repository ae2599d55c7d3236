"""The metrics of a run, as ``metrics.json`` contains them."""

from __future__ import annotations

import platform
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from fcot.llm.money import FREE, sum_by_key
from fcot.prompts.answers import votes
from fcot.prompts.config import PromptConfig
from fcot.runs.identity import uses_seed
from fcot.runs.run import Run
from fcot.tasks.config import SplitConfig
from fcot.tasks.leaks import near_duplicates
from fcot.tasks.splits import questions_hash, shared_questions
from fcot.tasks.table import TASKS

Summary = dict[str, Any]


@dataclass(frozen=True)
class Metrics:
    """The metrics of a finished run. Accuracies, rates and shares are in 0..1, times in seconds. None: unknown, or not applicable.

    Attributes:
        run_id: The run's name: readable parts and a hash of everything that changes a prediction.
        method: The method's name, such as ``fine_tune_cot``.
        task: The task's name.
        student: The student's name.
        base_model: The model that the student is made from: a hub id, a folder's name, or an API's name; None for students from scratch.
        data_file: Name of the file or hub id of own data; None for other tasks.
        teacher: The model that wrote the rationales.
        diversity: Completions per problem, D.
        split_mode: The split mode's name, such as ``sample``.
        seed: The configured seed; if the result depends only on the seed of the run that trained the student before, that one.
        uses_seed: Whether the result depends on one of these seeds.
        setting: A hash that is equal for runs that differ only in these seeds.
        as_published: Whether the settings are those of paper A, so that the accuracy can be compared with its figures.
        sampled: Whether the teacher sampled instead of decoding greedily.
        subset: Number of problems in the few-shot subset.
        n_train_problems: Number of train problems, without those held out for validation.
        n_validation_problems: Number of held-out problems on which the checkpoint is selected.
        n_reasoning_samples: Number of rationales that the student was trained on.
        n_test: Number of test problems.
        accuracy: Test accuracy of the reported checkpoint.
        accuracy_ci95: 95 % Wilson interval of ``accuracy`` over problems, [low, high].
        accuracy_checkpoint: The reported checkpoint: ``validation``, ``last``, ``untrained``, or ``finished`` of a finished student.
        accuracy_best_epoch: The best test accuracy of any evaluation (paper A's figure). Nothing is selected with it.
        validation_accuracy: Validation accuracy of the reported checkpoint.
        random_guess: Accuracy of random guessing on the task.
        majority_answer: The most frequent gold answer of the train problems.
        majority_accuracy: Test accuracy of always giving ``majority_answer``.
        answer_in_completion: Share of test completions that contain the gold answer anywhere.
        well_formed: Share of test completions that end with the format's prefix and an answer.
        complete: Share of test completions that ended before the token limit.
        answer_tokens: Mean number of generated tokens per test problem; sampled answers are added up.
        errors: Number of wrong answers by error mark.
        completions_asked: Number of teacher completions, over all rounds.
        completions_kept: Number of completions that curation kept.
        completions_correct: Number of completions with the gold answer.
        completions_empty: Number of completions without a rationale.
        completions_cut: Number of completions that the token limit cut.
        completions_unanswered: Number of completions without a readable answer.
        teacher_accuracy: The teacher's accuracy on the train problems with a gold answer.
        teacher_accuracy_voted: Accuracy of the majority answer of each of these problems' completions.
        teacher_at_k: maj@k and pass@k of the teacher's completions of these problems, as ``at_k``; None for D = 1.
        rationale_words: Mean number of words of a kept rationale.
        teacher_characters: Number of characters of all completions.
        teacher_prompt_characters: Number of characters of the questions that were sent.
        teacher_price: USD per million prompt tokens and per million completion tokens.
        devices: Number of processes that trained, one per device.
        refused: Number of rejected completions by reason code.
        teacher_usage: Usage of the teacher's requests (:meth:`fcot.llm.generate.Generated.usage`).
        student_usage: Usage of an API-backed student's requests, and the price of its training.
        temperature: The teacher's temperature.
        precision: Lightning's name of the precision, as resolved on this machine.
        n_steps: Number of optimizer steps.
        train_samples_per_second: Training samples processed per second.
        padding_efficiency: Share of the computed training tokens that are not padding.
        accuracy_single_sample: Mean accuracy of single sampled answers, if ``accuracy`` is that of a majority vote.
        at_k: maj@k and pass@k of the sampled answers with 95 % intervals, by k; None for one answer per problem.
        cut_questions: Number of test questions whose beginning was cut.
        shortened_prompts: Number of test prompts that lost exemplars.
        dropped_exemplars: Number of exemplars that the shortened prompts lost.
        exemplars_left_out: Number of test problems that are not scored because they are exemplars.
        n_parameters: Number of the student's parameters.
        cut_prompts: Number of training prompts whose beginning was cut.
        cut_completions: Number of training completions whose end was cut.
        unknown_token_share: Share of the training tokens that the tokenizer cannot represent.
        questions_sha256: Hash of all questions in their order.
        rows_in_published_order: Whether the rows of the data are in the published order.
        test_questions_also_in_train: Number of test questions that are also in train, with the same words and numbers.
        test_questions_in_train_but_for_numbers: Number of test questions that are in train with other numbers.
        test_questions_of_a_train_template: Number of test questions that are in train with other names or numbers.
        seconds: Duration of each stage, over all attempts.
        history: One entry per evaluation during training.
        versions: Versions of Python and of the packages that compute the result.
        equations: What the calculator did in the test answers: equals signs ``met``, those with a calculation before them ``computed``,
            and those whose number it ``changed``. None without a calculator.
        rounds: Tailored learning: one entry per round.
        learnt_from: Tailored learning: the source of later rounds, ``feedback``, ``plain``, ``self`` or ``both``.
        best_round: Tailored learning: the round whose student is the run's student.
        rounds_ended: Tailored learning: why there were no further rounds.
        exam_of_no_round: Tailored learning: the exam of a round that was then skipped.
        student_task: Evaluation of a finished student: the task that it was trained on.
        student_method: Evaluation of a finished student: the method that trained it.
        scored_tokens: With a local teacher's distributions: number of tokens that this teacher read, those of prompts included.
        own_samples: On-policy distillation: numbers of samples that the student wrote, by what became of them, and their tokens.
        trained_left_out: Evaluation of a finished student: number of test problems that are not scored because it was trained on them.
        choice: With ``curation.max_per_problem``: numbers of completions that passed the filters and of those that were chosen, and their
            mean scores. None without a choice.
        judge: With ``curation.judge``: numbers of verdicts, of those that name a wrong step, and of unreadable ones by reason; and the
            usage of the judge's requests, which ``teacher_usage`` includes. None without a judge.
        method_title: The method's name in reports, if the configuration has its own, as presets have.
    """

    run_id: str
    method: str
    task: str
    student: str
    base_model: str | None
    data_file: str | None
    teacher: str | None
    diversity: int | None
    split_mode: str
    seed: int
    uses_seed: bool
    setting: str
    as_published: bool
    sampled: bool
    subset: int | None
    n_train_problems: int
    n_validation_problems: int
    n_reasoning_samples: int
    n_test: int
    accuracy: float | None
    accuracy_ci95: list[float]
    accuracy_checkpoint: str
    accuracy_best_epoch: float | None
    validation_accuracy: float | None
    random_guess: float
    majority_answer: str | None
    majority_accuracy: float | None
    answer_in_completion: float | None
    well_formed: float | None
    complete: float | None
    answer_tokens: float | None
    errors: dict[str, int]
    completions_asked: int
    completions_kept: int
    completions_correct: int
    completions_empty: int | None
    completions_cut: int | None
    completions_unanswered: int | None
    teacher_accuracy: float | None
    teacher_accuracy_voted: float | None
    teacher_at_k: dict[str, Summary] | None
    rationale_words: float | None
    teacher_characters: int | None
    teacher_prompt_characters: int | None
    teacher_price: tuple[float, float] | None
    devices: int
    refused: dict[str, int]
    teacher_usage: Summary | None
    student_usage: Summary | None
    temperature: float | None
    precision: str | None
    n_steps: int | None
    train_samples_per_second: float | None
    padding_efficiency: float | None
    accuracy_single_sample: float | None
    at_k: dict[str, Summary] | None
    cut_questions: int
    shortened_prompts: int
    dropped_exemplars: int
    exemplars_left_out: int
    n_parameters: int | None
    cut_prompts: int
    cut_completions: int
    unknown_token_share: float
    questions_sha256: str
    rows_in_published_order: bool | None
    test_questions_also_in_train: int
    test_questions_in_train_but_for_numbers: int
    test_questions_of_a_train_template: int
    seconds: dict[str, float]
    history: list[Summary]
    versions: dict[str, str]
    equations: Summary | None = None
    rounds: list[Summary] | None = None
    learnt_from: str | None = None
    best_round: int | None = None
    rounds_ended: str | None = None
    exam_of_no_round: Summary | None = None
    student_task: str | None = None
    student_method: str | None = None
    trained_left_out: int | None = None
    scored_tokens: int | None = None
    own_samples: Summary | None = None
    choice: Summary | None = None
    judge: Summary | None = None
    method_title: str | None = None

    def to_row(self) -> Summary:
        """The object in ``metrics.json``. Fields about what a run does not have (rounds, a finished student, ...) are left out."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        left_out = (() if self.rounds is not None else _OF_ROUNDS) + (() if self.student_task is not None else _OF_FINISHED_STUDENTS)
        left_out += tuple(name for name in _OF_SOME_RUNS if row[name] is None)
        return {name: value for name, value in row.items() if name not in left_out}


_COUNTING = ("probe", "score", "curate", "generate")  # stages that count the teacher's usage, the last one of a run first
_OF_FINISHED_STUDENTS = ("student_task", "student_method", "trained_left_out")
_OF_SOME_RUNS = ("equations", "scored_tokens", "own_samples", "choice", "judge", "method_title")
_OF_ROUNDS = ("rounds", "learnt_from", "best_round", "rounds_ended", "exam_of_no_round")


def metrics_of(run: Run, stages: dict[str, Summary], rounds: Summary) -> Metrics:
    """The metrics of a run, from the summaries of its stages.

    Args:
        run: The finished run.
        stages: The summary of each stage, by name.
        rounds: Fields that a run with rounds adds or replaces; empty for other runs.
    """
    curated, trained, evaluated = stages.get("curate", {}), stages.get("train", {}), stages["evaluate"]
    metrics = Metrics(
        **_of_configuration(run),
        **_of_curation(curated, run.config.diversity),
        **_of_training(trained, "finished" if run.origin else "untrained"),
        **_of_evaluation(evaluated),
        teacher_usage=_teacher_usage(stages),
        student_usage=trained.get("student_usage", {}) | evaluated.get("student_usage", {}) or None,
        seconds={name: summary["seconds"] for name, summary in stages.items()},
        versions=_versions(),
    )
    return replace(metrics, **rounds)


def _teacher_usage(stages: dict[str, Summary]) -> Summary | None:
    """The usage of all requests to the teacher, those of the judge and the scores of the student's samples included; None without any."""
    usage = next((stages[name]["teacher_usage"] for name in _COUNTING if stages.get(name, {}).get("teacher_usage")), None)
    judge = stages["judge"]["judge"]["usage"] if usage and "judge" in stages else None
    usages = [part for part in (usage, judge, stages.get("train", {}).get("scoring_usage")) if part]
    return sum_by_key(usages) if len(usages) > 1 else next(iter(usages), None)


def _of_configuration(run: Run) -> Summary:
    """The metrics that follow from the configuration, the data and the split."""
    config, split = run.config, run.split
    majority = _majority_answer(run)
    remote = config.student.remote
    return {
        "run_id": run.run_id,
        "method": config.method.name,
        "method_title": getattr(config.method, "title", None),
        "task": run.task.name,
        "student": config.student.name,
        "base_model": run.teacher_name if run.is_teacher else config.student.base_model,
        "data_file": None if run.task.name in TASKS or config.dataset.toy else Path(config.dataset.path).name,
        "teacher": run.teacher_name,
        "diversity": config.diversity if run.uses_rationales else None,
        "split_mode": config.split_mode.name,
        **_seed(run),
        "setting": run.setting,
        "as_published": _as_published(run),
        "sampled": run.temperature > 0,
        "subset": config.split_mode.subset,
        "n_train_problems": len(split.train) if run.trains else 0,
        "n_validation_problems": len(split.validation),
        "random_guess": run.task.random_guess / 100,
        "majority_answer": majority[0] if majority else None,
        "majority_accuracy": majority[1] if majority else None,
        "teacher_price": _teacher_price(run),
        "devices": 1 if remote else config.trainer.devices * config.trainer.nodes,
        "temperature": run.teacher.identity.get("temperature") if run.teacher else None,
        "precision": None if remote else run.precision,
        "exemplars_left_out": run.exemplars_left_out,
        "questions_sha256": questions_hash(list(run.problems.values())),
        "rows_in_published_order": run.order_known if run.task.order else None,
        "test_questions_also_in_train": shared_questions(run.problems, split),
        "student_task": run.origin.task if run.origin else None,
        "student_method": run.origin.method if run.origin else None,
        "trained_left_out": run.trained_left_out if run.origin else None,
        **near_duplicates(run.problems, split),
    }


def _of_curation(curated: Summary, diversity: int) -> Summary:
    labelled = curated.get("labelled")
    return {
        "completions_asked": curated.get("asked", 0),
        "completions_kept": curated.get("kept", 0),
        "completions_correct": curated.get("correct", 0),
        "completions_empty": curated.get("empty"),
        "completions_cut": curated.get("cut"),
        "completions_unanswered": curated.get("unanswered"),
        "teacher_accuracy": curated["correct"] / labelled if labelled else None,
        "teacher_accuracy_voted": curated["voted_correct"] * diversity / labelled if labelled else None,
        "teacher_at_k": curated.get("at_k"),
        "rationale_words": curated.get("rationale_words"),
        "teacher_characters": curated.get("characters"),
        "teacher_prompt_characters": curated.get("prompt_characters"),
        "refused": curated.get("refused", {}),
        "choice": curated.get("choice"),
        "judge": curated.get("judge"),
    }


def _of_training(trained: Summary, otherwise: str) -> Summary:
    """The metrics about the training; ``otherwise`` names the checkpoint if the run trained none."""
    return {
        "n_reasoning_samples": trained.get("n_reasoning_samples", 0),
        "accuracy_checkpoint": trained.get("checkpoint", otherwise),
        "accuracy_best_epoch": trained.get("best_test_accuracy"),
        "validation_accuracy": trained.get("validation_accuracy"),
        "n_steps": trained.get("n_steps", 0),
        "train_samples_per_second": trained.get("samples_per_second"),
        "padding_efficiency": trained.get("padding_efficiency"),
        "cut_prompts": trained.get("cut_prompts", 0),
        "cut_completions": trained.get("cut_completions", 0),
        "unknown_token_share": trained.get("unknown_token_share", 0.0),
        "history": trained.get("history", []),
        "scored_tokens": trained.get("scored_tokens"),
        "own_samples": trained.get("own_samples"),
    }


def _of_evaluation(evaluated: Summary) -> Summary:
    return {
        "n_test": evaluated["n_test"],
        "accuracy": evaluated["accuracy"],
        "accuracy_ci95": evaluated["accuracy_ci95"],
        "answer_in_completion": evaluated["answer_in_completion"],
        "well_formed": evaluated["well_formed"],
        "complete": evaluated["complete"],
        "answer_tokens": evaluated.get("answer_tokens"),
        "errors": evaluated.get("errors", {}),
        "accuracy_single_sample": evaluated.get("accuracy_single_sample"),
        "at_k": evaluated.get("at_k"),
        "cut_questions": evaluated.get("cut_questions", 0),
        "shortened_prompts": evaluated.get("shortened_prompts", 0),
        "dropped_exemplars": evaluated.get("dropped_exemplars", 0),
        "n_parameters": evaluated.get("n_parameters"),
        "equations": evaluated.get("equations"),
    }


def _majority_answer(run: Run) -> tuple[str, float] | None:
    """The most frequent gold answer of the train problems, and its test accuracy (0..1); None without gold answers or test problems."""
    rule, train = run.task.rule, [run.problems[index] for index in (*run.split.train, *run.split.validation)]
    counts = votes([rule.gold(problem.answer) for problem in train if problem.labelled])
    test = run.select(run.split.test)
    if not counts or not test:
        return None
    answer = next(iter(counts))
    return answer, sum(rule.same(answer, problem.answer) for problem in test) / len(test)


def _seed(run: Run) -> dict[str, Any]:
    """The seed on which the result depends, and whether there is one."""
    earlier = None if run.earlier_training is None else run.earlier_training.seed
    by_itself = uses_seed(run)
    return {"seed": run.config.seed if by_itself or earlier is None else earlier, "uses_seed": by_itself or earlier is not None}


def _as_published(run: Run) -> bool:
    """Whether the run has paper A's settings: its data, split and loss, the answer filter, one greedy answer, all parameters trained."""
    config, student = run.config, run.config.student
    curation = config.curation
    split, prompt = config.split_mode, config.prompt
    plain = curation.filters == ["answer"] and curation.labels == "gold" and curation.max_samples is None
    plain = plain and not curation.match_golden and curation.max_per_problem is None and curation.judge != "filter"
    return bool(
        (run.order_known or run.task.order is None)
        and split.name == run.task.split
        and (split.name != "sample" or split.train_fraction == SplitConfig.train_fraction)
        and (prompt.rationale_tokens == PromptConfig.rationale_tokens or not run.uses_rationales or not prompt.two_steps)
        and config.dataset.limit is None
        and (plain or not run.uses_rationales)
        and (config.objective.name == "completion" or not run.trains)
        and student.self_consistency == 1
        and not getattr(student, "calculator", False)
        and getattr(student, "max_new_tokens", 1024) >= 1024
        and getattr(getattr(student, "lora", None), "rank", None) is None
    )


def _teacher_price(run: Run) -> tuple[float, float] | None:
    """USD per million prompt tokens and per million completion tokens; None for a teacher that is free or has no known price."""
    price = run.plan.price if run.teacher is not None else None
    return None if price is None or price is FREE else (price.input, price.output)


def _versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute the result."""
    packages = ("fcot", "torch", "pytorch-lightning", "transformers", "tokenizers", "datasets", "numpy")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
