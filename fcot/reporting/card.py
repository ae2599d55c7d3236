"""Write the model card of a student: its results, its training data, their terms of use, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fcot.methods.table import METHODS
from fcot.prompts.student import FormatKind, StudentFormat

_LEARNED_FROM = {
    "feedback": "its feedback on the student's mistakes",
    "plain": "its further rationales",
    "self": "the student's own right answers",
}
NO_TEACHER = "No teacher took part: the training text comes from the dataset, whose license applies."


_SNIPPETS = {
    "decoder": """pipe = pipeline("text-generation", model="{folder}")
pipe({template!r}.format(question="..."), do_sample=False, return_full_text=False)""",
    "chat": """pipe = pipeline("text-generation", model="{folder}")
pipe([{{"role": "user", "content": {template!r}.format(question="...")}}], do_sample=False)""",
    "encoder_decoder": """tokenizer, model = AutoTokenizer.from_pretrained("{folder}"), AutoModelForSeq2SeqLM.from_pretrained("{folder}")
output = model.generate(**tokenizer({template!r}.format(question="..."), return_tensors="pt"), do_sample=False)
tokenizer.decode(output[0], skip_special_tokens=True)""",
}


def how_to_use(folder: str, layout: FormatKind, text_format: StudentFormat, api: bool) -> str:
    """How to use a student, as Markdown: fcot's command and, for a local student, code with transformers.

    Args:
        folder: The student's folder, or a placeholder for it.
        layout: The kind of prompt that the student's model takes.
        text_format: The student's prompt format.
        api: Whether the student is a remote model.
    """
    command = f'```\npython -m fcot.predict student={folder} "..."\n```'
    if api:
        return command
    snippet = _SNIPPETS[layout].format(folder=folder, template=_template(text_format))
    names = "AutoModelForSeq2SeqLM, AutoTokenizer" if layout == "encoder_decoder" else "pipeline"
    return f"{command}\n\n```python\nfrom transformers import {names}\n\n{snippet}\n```"


def _template(text_format: StudentFormat) -> str:
    """The student's prompt, demonstrations included, with ``{question}`` as placeholder."""
    mark = "\0"
    return text_format.prompt(mark).replace("{", "{{").replace("}", "}}").replace(mark, "{question}")


def model_card(metrics: Mapping[str, Any], config_text: str, terms: str | None, base_model: str | None, use: str) -> str:
    """The card's Markdown.

    Args:
        metrics: The run's metrics.
        config_text: The run's configuration as YAML.
        terms: The terms of use of the rationales, with the placeholder ``{teacher}``; None without a teacher.
        base_model: The fine-tuned model's name at its hub or API; None for a student from scratch or from a folder.
        use: How to use the student, as Markdown (:func:`how_to_use`).
    """
    low, high = metrics["accuracy_ci95"]
    teacher, best = metrics["teacher"], metrics["accuracy_best_epoch"]
    interval = f"{_percent(metrics['accuracy'])} (95 % interval {_percent(low)} to {_percent(high)})"
    chosen = metrics["validation_accuracy"]
    held_out = f"{metrics['n_validation_problems']:,} validation problems"
    times = _evaluations(metrics, "validation_accuracy")
    checkpoint = "the last" if chosen is None else f"the best on {held_out} ({_percent(chosen)}{times})"
    facts = [
        f"| accuracy on {metrics['n_test']:,} test problems | {interval} |",
        f"| random guess | {_percent(metrics['random_guess'])} |",
        *_majority(metrics),
        f"| checkpoint | {checkpoint} |",
        f"| seed, optimizer steps | {metrics['seed']}, {metrics['n_steps'] or 'unknown'} |",
    ]
    if best is not None:
        times = _evaluations(metrics, "test_accuracy")
        facts.append(f"| best test accuracy over epochs (chosen on the test set, optimistic{times}) | {_percent(best)} |")
    data = f"{metrics['n_train_problems']:,} train problems of {metrics['task']} (split mode {metrics['split_mode']})"
    if teacher is not None:
        rounds = metrics.get("rounds") or []
        plain = rounds[0] if rounds else metrics
        kept = f"{plain['completions_kept']:,} rationales kept of {plain['completions_asked']:,}"
        data += f", {kept} that {teacher} wrote (D = {metrics['diversity']})"
        later = rounds[1 : metrics.get("best_round", 1)]
        n_kept, n_asked = (sum(round_metrics[key] for round_metrics in later) for key in ("completions_kept", "completions_asked"))
        counts = f"{n_kept:,} of {n_asked:,}"
        data += f"; in {len(later)} later rounds {counts} completions ({_LEARNED_FROM[metrics['learnt_from']]})" if later else ""
    terms = terms or NO_TEACHER
    head = ["library_name: transformers", "tags: [fcot, chain-of-thought, distillation]"]
    head += [f"base_model: {base_model}"] if base_model else []
    writes = "its reasoning, then the answer" if teacher is not None else "the answer"
    title = f"# {metrics['student']}, {METHODS[metrics['method']].title} on {metrics['task']}"
    return "\n".join(
        [
            "---", *head, "---", "", title, "", f"A student of fcot: it writes {writes}. Run `{metrics['run_id']}`.", "",
            "## Results", "", "| | |", "|---|---|", *facts, "", "## Data", "", data + ".", "",
            "## Terms", "", terms.format(teacher=teacher), "", "## Use", "", use, "",
            "## Configuration", "", "```yaml", config_text.strip(), "```", "",
        ]
    )  # fmt: skip


def _majority(metrics: Mapping[str, Any]) -> list[str]:
    share = metrics.get("majority_accuracy")
    return [] if share is None else [f"| always the most frequent answer of train ({metrics['majority_answer']}) | {_percent(share)} |"]


def _evaluations(metrics: Mapping[str, Any], name: str) -> str:
    """The number of evaluations of which an accuracy is the maximum; empty for a single one."""
    n = sum(entry.get(name) is not None for entry in metrics.get("history") or ())
    return f"; best of {n} evaluations" if n > 1 else ""


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"
