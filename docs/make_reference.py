"""Print ``docs/reference.md`` from the configuration's schemas and ``conf/``: python docs/make_reference.py > docs/reference.md."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fcot.config.schema import SCHEMAS, Config

CONF = Path(__file__).parent.parent / "conf"
HEAD = """\
# Reference

This page is generated from the configuration's schemas and from `conf/`: `python docs/make_reference.py > docs/reference.md`.

`GROUP=CHOICE` selects a choice, `KEY=VALUE` sets a key: `python -m fcot.run student=flan_t5_base student.max_new_tokens=256`.
`python -m fcot.run --cfg job` prints all keys of a run with their values.

- **Default** is the schema's. `???` must be set, by the choice or by you. `null` means "not set".
- **Identity** says whether another value makes another run: `value`, the value counts; `content`, what the value stands for counts, such
  as a file's text; `no`, another value continues the same run, with the reason. See [Concepts](concepts.md#a-runs-identity).
- A key that the run does not read never counts.
"""
TYPES = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "None": "null", "list": "list", "dict": "mapping"}
COMMAND = re.compile(r"\s+(srun )?python ")


def comments(schema: type) -> dict[str, str]:
    """The comment of each field: behind it, or in the lines before it."""
    source = textwrap.dedent(inspect.getsource(schema))
    lines = source.splitlines()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            behind = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()  # type: ignore[operator]
            before = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                before.insert(0, line.strip().lstrip("# "))
            found[node.target.id] = behind or " ".join(before)
    return found


def kind(annotation: str) -> str:
    """A field's type in words."""
    parts = (part.strip() for part in annotation.split("|"))
    return " or ".join(TYPES.get(part, TYPES.get(part.partition("[")[0], part)) for part in parts)


def shown(value: Any) -> str:
    """A value as YAML has it, in one line of code."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip().removesuffix("...").strip()
    return f"`{text}`" if len(text) < 100 and "\n" not in text else "(see the file)"


def allowed(option: dataclasses.Field[Any]) -> str:
    """The bounds of a field in words."""
    bounds = option.metadata.get("bounds")
    if bounds is None:
        return ""
    if bounds.one_of:
        return ", ".join(f"`{choice}`" for choice in bounds.one_of)
    words = {"at_least": "at least", "above": "more than", "at_most": "at most", "below": "below"}
    limits = [f"{word} {getattr(bounds, name)}" for name, word in words.items() if getattr(bounds, name) is not None]
    return ", ".join(limits + ["a file"] * bounds.file)


def identity(option: dataclasses.Field[Any]) -> str:
    """How a field takes part in a run's identity."""
    part = option.metadata.get("identity")
    if part is None or part.kind == "counted":
        return "value"
    if part.kind == "absent_at":
        return f"value, except at {shown(part.frozen)}"
    return f"{'no' if part.kind == 'neutral' else 'content'}: {part.reason}"


@functools.cache
def same_group(schema: type) -> dict[str, str]:
    """The comments of all schemas of a schema's group, by field: a field is often explained in one of them only."""
    groups = {group for (group, _), known in SCHEMAS.items() if known is schema}
    others = [known for (group, _), known in SCHEMAS.items() if group in groups]
    return {name: text for other in others for name, text in comments(other).items() if text}


def rows(schema: type, prefix: str) -> Iterator[str]:
    """A line of the table for each field; those of a nested group below the group's name."""
    said = same_group(schema) | {name: text for name, text in comments(schema).items() if text}
    for option in dataclasses.fields(schema):
        factory = option.default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            yield from rows(factory, f"{prefix}{option.name}.")
            continue
        default = option.default if factory is dataclasses.MISSING else factory()
        if option.name == "name" or (default == "???" and option.type == "Any") or str(option.type).endswith("Config"):
            continue  # what chooses the group, and the groups themselves
        cells = [f"`{prefix}{option.name}`", kind(str(option.type)), shown(default).replace("`'???'`", "`???`"), allowed(option),
                 said.get(option.name, ""), identity(option)]  # fmt: skip
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(schema: type, prefix: str) -> list[str]:
    """The fields of a schema."""
    head = ["| key | type | default | allowed | meaning | identity |", "|---|---|---|---|---|---|"]
    return [*head, *rows(schema, prefix), ""]


def head_comment(text: str) -> list[str]:
    """The comment at the head of a YAML file, line by line."""
    lines = [line[1:] for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return [line.removeprefix(" ") for line in lines]


def sentence(text: str) -> str:
    """The head comment of a choice as one paragraph."""
    lines = (line.strip() for line in head_comment(text) if not COMMAND.match(line))
    return " ".join(lines).replace("|", "\\|").replace("<", "&lt;")


def choices(group: str) -> Iterator[tuple[str, str]]:
    """Name and text of each choice of a group."""
    for path in sorted((CONF / group).glob("**/*.yaml")):
        yield str(path.relative_to(CONF / group).with_suffix("")), path.read_text()


def sets(text: str) -> str:
    """The keys that a choice sets."""
    values = {key: value for key, value in yaml.safe_load(text).items() if key not in ("defaults", "name")}
    return ", ".join(f"{key} {shown(value)}" for key, value in values.items()).replace("|", "\\|")


def group(name: str) -> list[str]:
    """The section of a group: its choices, and the keys of each of its schemas."""
    lines = [f"## {name}", "", "| choice | what it is | sets |", "|---|---|---|"]
    users: dict[str, list[str]] = {}
    texts = dict(choices(name))
    for choice, text in texts.items():
        base = re.search(r"^defaults:\n  - (\w+)$", text, re.MULTILINE)  # a preset builds on another choice
        schema = re.search(rf"/schema/{name}: (\w+)", texts[base[1]] if base else text)
        users.setdefault(schema[1] if schema else "", []).append(choice)
        lines.append(f"| `{choice}` | {sentence(text)} | {sets(text)} |")
    lines.append("")
    key = name.replace("-", "_")
    for schema_name, chosen in users.items():
        lines += [f"Keys of {', '.join(f'`{name}={choice}`' for choice in chosen)}:", ""]
        lines += table(SCHEMAS[name, schema_name], f"{key}.")
    return lines


def launchers() -> list[str]:
    """The section of launchers, whose keys have their comments in YAML."""
    lines = ["## hydra/launcher", "", "Keys are `hydra.launcher.KEY`. None of them counts in a run's identity.", ""]
    for name, text in choices("hydra/launcher"):
        lines += [f"`hydra/launcher={name}`: {sentence(text.partition('defaults')[0])}", ""]
        keys = [found.groups() for line in text.splitlines() if (found := re.match(r"( *)(\w+):(.*)", line)) and found[2] != "defaults"]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        above = ""
        for indent, key, rest in keys:
            value, _, meaning = rest.partition("#")
            above = above if indent else f"{key}." if not value.strip() else ""
            cell = f"`{value.strip()}`" if value.strip() else ""
            lines.append(f"| `{above * bool(indent)}{key}` | {cell} | {meaning.strip()} |".replace("a100|h100", "a100\\|h100"))
        lines.append("")
    return lines


def experiments() -> list[str]:
    """The section of experiments: what each is for, and its command."""
    lines = ["## experiment", "", "| experiment | what it is for, and what it costs | command |", "|---|---|---|"]
    for name, text in choices("experiment"):
        head = head_comment(text.partition("\ndefaults")[0].partition("\nhydra")[0])
        commands = [line.strip().partition("     #")[0] for line in head if COMMAND.match(line)]
        about = " ".join(line.strip() for line in head if not COMMAND.match(line))
        lines.append(f"| `{name}` | {about} | `{commands[0] if commands else ''}` |")
    return [*lines, ""]


def page() -> str:
    """The whole page."""
    names = list(dict.fromkeys(name for name, _ in SCHEMAS))
    lines = [HEAD, "## The root", "", *table(Config, "")]
    for name in names:
        lines += group(name)
    return "\n".join([*lines, *launchers(), *experiments()])


if __name__ == "__main__":
    print(page(), end="")
