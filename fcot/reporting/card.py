"""Write the model card of a student: its results, its training data, their terms of use, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fcot.base.fields import names_file, part_of
from fcot.methods.table import title_of
from fcot.prompts.student import FormatKind, StudentFormat
from fcot.student.interface import StudentInterface

_LEARNED_FROM = {
    "feedback": "its feedback on the student's mistakes",
    "plain": "its further rationales",
    "self": "the student's own right answers",
    "both": "its feedback on the student's mistakes, and the student's own right answers",
}
NO_TEACHER = "No teacher took part: the training text comes from the dataset, whose license applies."


@dataclass(frozen=True)
class BaseModel:
    """The model that was trained.

    Attributes:
        name: Its name: a hub id, the name of its folder, or that of a model from scratch.
        hub_id: Its hub id, or None.
        note: What it is, in a sentence, where the name does not say it; empty otherwise.
    """

    name: str
    hub_id: str | None = None
    note: str = ""


_TRANSFORMERS = {
    "decoder": """from transformers import pipeline

write = pipeline("text-generation", model="{folder}", return_full_text=False)
text = write(prompt, do_sample=False, max_new_tokens={limit})[0]["generated_text"]""",
    "chat": """from transformers import pipeline

write = pipeline("text-generation", model="{folder}", return_full_text=False)
text = write([{{"role": "user", "content": prompt}}], do_sample=False, max_new_tokens={limit})[0]["generated_text"]""",
    "encoder_decoder": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("{folder}"), AutoModelForSeq2SeqLM.from_pretrained("{folder}")
output = model.generate(**tokenizer(prompt, return_tensors="pt"), do_sample=False, max_new_tokens={limit})
text = tokenizer.decode(output[0], skip_special_tokens=True)""",
}
_REQUESTS = {
    "decoder": """reply = client.completions.create(model="student", prompt=prompt, temperature=0, max_tokens={limit})
text = reply.choices[0].text""",
    "chat": """messages = [{{"role": "user", "content": prompt}}]
reply = client.chat.completions.create(model="student", messages=messages, temperature=0, max_tokens={limit})
text = reply.choices[0].message.content""",
}
_SERVERS = """**vLLM** serves the folder:

```
vllm serve {folder} --served-model-name student
```

**llama.cpp** serves it as a GGUF file (`convert_hf_to_gguf.py` is in its repository), at port 8080 instead of 8000:

```
python convert_hf_to_gguf.py {folder} --outfile student.gguf
llama-server -m student.gguf --alias student
```

Both answer the same requests:

```python
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
{request}
```"""


def how_to_use(folder: str, layout: FormatKind, interface: StudentInterface, api: bool) -> str:
    """How to use and serve a student, as Markdown: with fcot and, for a local student, with transformers, vLLM and llama.cpp.

    Args:
        folder: The student's folder, or a placeholder for it.
        layout: The kind of prompt that the student's model takes.
        interface: The student's format and limits.
        api: Whether the student is a remote model.
    """
    command = f'```\nfcot predict {folder} "..."\n```'
    if api:
        return command
    places = {"folder": folder, "limit": interface.max_new_tokens}
    prefix = interface.format.answer_prefix
    behind = "" if prefix is None else f"The answer is the text behind the last `{prefix}`: "
    read = "answer = text.strip()" if prefix is None else f"answer = text.rpartition({prefix!r})[2].strip()"
    if layout == "encoder_decoder":
        servers = "vLLM and llama-server serve decoders only: serve this encoder-decoder with transformers."
    else:
        servers = _SERVERS.format(folder=folder, request=_REQUESTS[layout].format(**places))
    kind = ", in the model's chat template" if layout == "chat" else ""
    note = "\n\nOnly fcot has the calculator that corrects this student's equations; other programs read what it wrote itself."
    without = note if interface.calculator else ""
    return "\n\n".join([
        f"fcot sends questions from the command line or a file, and reads the answers:\n\n{command}{without}",
        f"Other programs send this prompt{kind}, decode greedily, and read the answer from the text:",
        f"```python\nprompt = {_template(interface.format)!r}.format(question=\"...\")\n```",
        f"{behind}`{read}`", f"**transformers**:\n\n```python\n{_TRANSFORMERS[layout].format(**places)}\n```", servers,
    ])  # fmt: skip


def _template(text_format: StudentFormat) -> str:
    """The student's prompt, demonstrations included, with ``{question}`` as placeholder."""
    mark = "\0"
    return text_format.prompt(mark).replace("{", "{{").replace("}", "}}").replace(mark, "{question}")


def public(options: Any) -> dict[str, Any]:
    """The options that say how a student was made, without paths, addresses and whatever changes no result.

    Args:
        options: An instance of a schema.
    """
    shown: dict[str, Any] = {}
    for option in fields(options):
        value = getattr(options, option.name)
        if (part_of(option).kind == "neutral" and option.name != "name") or names_file(option):
            continue
        value = public(value) if is_dataclass(value) else _public_value(value)
        if value not in (None, {}, [], ""):
            shown[option.name] = value
    return shown


_PRIVATE = re.compile(
    r"://|^[/~]|^\.{1,2}/|^[A-Za-z]:\\|(?<![\w./-])/(?:home|Users|root|mnt|data|tmp|srv|opt|work)/|\.(?:jsonl?|csv|tsv|txt|ya?ml|parquet)$"
)


def _public_value(value: Any) -> Any:
    """A value without the texts in it that name a path or an address."""
    if isinstance(value, Mapping):
        cleaned = {name: _public_value(item) for name, item in value.items()}
        return {name: item for name, item in cleaned.items() if item is not None}
    if isinstance(value, list | tuple):
        return [item for item in map(_public_value, value) if item is not None]
    is_private = isinstance(value, str) and (
        _PRIVATE.search(value) is not None or (len(value) < 1000 and "/" in value and Path(value).exists())
    )
    return None if is_private else value


def model_card(metrics: Mapping[str, Any], config: Any, terms: str | None, base: BaseModel, use: str) -> str:
    """The card's Markdown.

    Args:
        metrics: The run's metrics.
        config: The run's configuration, of which :func:`public` is shown.
        terms: The terms of use of the rationales, with the placeholder ``{teacher}``; None without a teacher.
        base: The model that was trained.
        use: How to use the student, as Markdown (:func:`how_to_use`).
    """
    low, high = metrics["accuracy_ci95"]
    best = metrics["accuracy_best_epoch"]
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
    head = ["library_name: transformers", "tags: [fcot, chain-of-thought, distillation]"]
    head += [f"base_model: {base.hub_id}"] if base.hub_id else []
    writes = "its reasoning, then the answer" if metrics["teacher"] is not None else "the answer"
    title = f"# {base.name}, {title_of(metrics)} on {metrics['task']}"
    note = f" {base.note}" if base.note else ""
    return "\n".join(
        [
            "---", *head, "---", "", title, "", f"A student of fcot: it writes {writes}. Base model: {base.name}.{note}", "",
            "## Results", "", "| | |", "|---|---|", *facts, "", "## Data", "", _data(metrics), "",
            "## Terms", "", (terms or NO_TEACHER).format(teacher=metrics["teacher"]), "", "## Use", "", use, "",
            "## Configuration", "", f"Run `{metrics['run_id']}`.", "", "```yaml", OmegaConf.to_yaml(public(config)).strip(), "```", "",
        ]
    )  # fmt: skip


def _data(metrics: Mapping[str, Any]) -> str:
    """What the student was trained on."""
    data, teacher = (
        f"{metrics['n_train_problems']:,} train problems of {metrics['task']} (split mode {metrics['split_mode']})",
        metrics["teacher"],
    )
    if teacher is None:
        return f"{data}."
    rounds = metrics.get("rounds") or []
    plain = rounds[0] if rounds else metrics
    kept = f"{plain['completions_kept']:,} rationales kept of {plain['completions_asked']:,}"
    data += f", {kept} that {teacher} wrote (D = {metrics['diversity']})"
    later = rounds[1 : metrics.get("best_round", 1)]
    n_kept, n_asked = (sum(round_metrics[key] for round_metrics in later) for key in ("completions_kept", "completions_asked"))
    counts = f"{n_kept:,} of {n_asked:,}"
    return data + (f"; in {len(later)} later rounds {counts} completions ({_LEARNED_FROM[metrics['learnt_from']]})." if later else ".")


def _majority(metrics: Mapping[str, Any]) -> list[str]:
    share = metrics.get("majority_accuracy")
    return [] if share is None else [f"| always the most frequent answer of train ({metrics['majority_answer']}) | {_percent(share)} |"]


def _evaluations(metrics: Mapping[str, Any], name: str) -> str:
    """The number of evaluations of which an accuracy is the maximum; empty for a single one."""
    n = sum(entry.get(name) is not None for entry in metrics.get("history") or ())
    return f"; best of {n} evaluations" if n > 1 else ""


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"
