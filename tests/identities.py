"""Small files that configurations name, and runs resolved from them: for tests of what names a run."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from configurations import make_run

from fcot.methods.table import METHODS
from fcot.prompts.answers import AnswerRule
from fcot.runs.run import Run
from fcot.student.interface import API_FILE, StudentInterface, write_interface


def write_files(folder: Path) -> Path:
    """Write one small file of each kind, and most a second time with another content. None depends on this machine."""
    rows = [
        {
            "question": f"What is {n} + 1?", "other": f"How much is {n} and 1?", "answer": n + 1, "wrong": n + 2, "letter": "ABCD"[n % 4],
            "rationale": f"{n} and 1 make {n + 1}.", "why": "So it is.", "template_id": n % 10, "group": n % 9,
            "side": "test" if n % 4 == 0 else "train", "price": f"${n + 1}.500", "ticket": f"WH-{n}",
        }
        for n in range(40)
    ]  # fmt: skip
    for name, lines in (("rows", rows), ("fewer", rows[:30])):
        _jsonl(folder / f"{name}.jsonl", lines)
    for name, split in (("split1", (28, 12)), ("split2", (20, 20))):
        train, test = list(range(split[0])), list(range(40 - split[1], 40))
        _json(folder / f"{name}.json", {"train": train, "test": test})
    for name, k in (("templates1", 10), ("templates2", 8)):
        _json(folder / f"{name}.json", {str(group): list(range(group, 40, k)) for group in range(k)})
    for name, word in (("replay1", "So"), ("replay2", "Thus")):
        metadata = {"dataset_key": "custom", "base_model": "davinci"}
        data = {
            str(n): [
                {
                    "sample_index": n, "completion_index": slot, "question": row["question"], "answer": str(row["answer"]),
                    "prompt": "", "reasoning_completion": f" {word} {n}.", "completion": f" {n + 1}.", "finish_reason": "stop",
                }
                for slot in range(2)
            ]
            for n, row in enumerate(rows)
        }  # fmt: skip
        _json(folder / f"{name}.json", {"metadata": metadata, "data": data})
    for name, word in (("1", "Question"), ("2", "Problem")):
        (folder / f"prompt{name}.txt").write_text(f"{word}: {{question}}\nEnd with '{{trigger}}'.")
        (folder / f"judge{name}.txt").write_text(f"{word}: {{question}}\n{{steps}}")
        (folder / f"feedback{name}.txt").write_text(f"{word}: {{question}}\n{{mistakes}}\n{{hint}}{{trigger}}")
        _jsonl(folder / f"exemplars{name}.jsonl", [{"question": f"{word} {n}?", "rationale": "So.", "answer": n} for n in range(3)])
        _json(folder / f"golden{name}.json", list(range(5 * int(name))))
        model = folder / f"model{name}"
        model.mkdir()
        _json(model / "config.json", {"model_type": "gpt2"})
        (model / "model.safetensors").write_bytes(word.encode())
        (folder / f"tokenizer{name}").mkdir()
        _json(folder / f"tokenizer{name}/tokenizer.json", {"version": name})
        student = folder / f"remote_student{name}"
        student.mkdir()
        _json(student / API_FILE, {"model": "m"})
        form = METHODS["fine_tune_cot"].formats["chat"]
        write_interface(student, StudentInterface("toy", "fine_tune_cot", form, AnswerRule("number"), True, 512, 256 * int(name)))
    (folder / "prices.yaml").write_text("m: {input: 1.0, output: 2.0}\n")
    return folder


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@cache
def run_of(folder: Path, *overrides: str) -> Run:
    """The run of some overrides, in which FILES stands for the folder of :func:`write_files`."""
    return make_run(folder / "outputs", *(override.replace("FILES", str(folder)) for override in overrides))


# --- functions that configurations name -------------------------------------------------------------------------------


def short(candidate, min_words=3):
    """A filter with a setting."""
    return "short" if len(candidate.rationale.split()) < min_words else None


def a_teacher(prompt, *, n, **_):
    """A teacher of one sentence."""
    return [f"{prompt} The answer is 1."] * n


def another_teacher(prompt, *, n, **_):
    """Another function for the same ``teacher.model_id``."""
    return [f"{prompt} So the answer is 1."] * n
