"""A report as a W&B Report: the document's sections, and panels over its runs in W&B's own charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fcot.base.errors import FcotError
from fcot.base.files import read_json, write_atomic, write_json
from fcot.methods.table import METHODS
from fcot.reporting.document import Block, Chart, Code, Document, Paragraph, Section
from fcot.reporting.published import published
from fcot.reporting.settings import MetricsRow, number
from fcot.reporting.table import Table
from fcot.reporting.wandb_server import KEY, Offline, account, wandb_folder

# What a sweep may have varied, as it stands in the runs' summaries.
_AXES = {
    "diversity": "D", "n_train_problems": "train problems", "n_reasoning_samples": "reasoning samples",
    "n_parameters": "parameters of the student", "teacher_accuracy": "accuracy of the teacher",
}  # fmt: skip
_HEADS = {  # of sections that have panels and nothing else here
    "results": "Results", "scaling": "Scaling", "cost": "Cost", "training": "Training", "samples": "Samples", "rounds": "Rounds",
    "configs": "Configurations",
}  # fmt: skip
_TITLE = 128  # characters that W&B takes


def publish(document: Document, entity: str | None, project: str | None, folder: Path, again: str) -> str:
    """Save a document as a W&B Report: made the first time, updated afterwards; or, without a server, its spec as a file.

    Args:
        document: What it says.
        entity: Whose it is; None for that of the runs, else the key's own.
        project: Where; None for that of the runs.
        folder: Of the report: keeps its address (``report_wandb_url.json``) or its spec (``report_wandb.json``).
        again: The command that publishes it.

    Returns:
        Its address, or where the spec is.

    Raises:
        FcotError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ModuleNotFoundError as error:
        raise FcotError("a W&B Report needs wandb-workspaces: pip install 'fcot[wandb-report]'") from error
    told = [read_json(run.directory.wandb) for run in document.runs if run.directory.wandb.exists()]
    if n := len(document.runs) - len(told):
        print(f"W&B Report: {n} of {len(document.runs)} runs were not logged there; their commands with logger=wandb do that now")
    project = project or next((one["project"] for one in told), "fcot")
    entity = entity or next((one["entity"] for one in told if one["entity"]), None)
    outputs = document.runs[0].directory.path.parent.parent if document.runs else folder
    with wandb_folder(outputs / "cache" / "wandb"):
        try:
            own = account()
            entity = entity or own
            if entity is None:
                raise Offline("the server does not tell whose the report would be: WANDB_ENTITY=...")
            address = _save(wr, document, told, entity, project, folder / "report_wandb_url.json")
        except Offline as error:
            return _keep(wr, document, told, folder / "report_wandb.json", str(error), again)
        except Exception as error:  # wandb's and requests' own kinds
            return _keep(wr, document, told, folder / "report_wandb.json", f"{type(error).__name__}: {error}", again)
    (folder / "report_wandb.json").unlink(missing_ok=True)  # of a time without a server
    print(f"W&B Report: {address}")
    return address


def _save(wr: Any, document: Document, told: Sequence[Mapping[str, Any]], entity: str, project: str, kept: Path) -> str:
    """Create the report, or update the one whose address is kept."""
    before = read_json(kept) if kept.exists() else {}
    report = wr.Report(entity=entity, project=project)
    if (before.get("entity"), before.get("project")) == (entity, project):
        report.id = before["id"]
    report.title = document.title[:_TITLE]
    report.description, report.width = "Made by fcot from the files that the runs left", "fluid"
    report.blocks = blocks(wr, document, told, entity, project)
    try:
        report.save()
    except Exception as error:
        hint = f" (where {before['url']} was deleted there, remove {kept})" if before else ""
        raise Offline(f"{type(error).__name__}: {error}{hint}") from error
    address = str(report.url)
    write_json(kept, {"url": address, "id": report.id, "entity": entity, "project": project})
    return address


def _keep(wr: Any, document: Document, told: Sequence[Mapping[str, Any]], path: Path, why: str, again: str) -> str:
    """Write the spec, and say how to publish later."""
    report = wr.Report(entity="", project="", title=document.title[:_TITLE], blocks=blocks(wr, document, told, "", ""), width="fluid")
    write_atomic(path, report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True) + "\n")
    print(f"W&B Report: not published ({why}); its spec: {path}")
    print(f"to publish it later, with the key in {KEY}: {again}")
    return str(path)


def blocks(wr: Any, document: Document, told: Sequence[Mapping[str, Any]], entity: str, project: str) -> list[Any]:
    """The report's blocks.

    Args:
        wr: ``wandb_workspaces.reports.v2``.
        document: What is said.
        told: How its runs are found at W&B; runs that were not logged there have no panels.
        entity: Whose the runs are.
        project: Where they are.
    """
    logged = [run for run in document.runs if run.directory.wandb.exists()]
    panels = _panels(wr, [run.metrics for run in logged]) if told else {}
    made = [wr.TableOfContents(), wr.P(document.answer)]
    if len(told) < len(document.runs):
        n = len(document.runs) - len(told)
        made.append(wr.P(f"{n} of {len(document.runs)} runs were not logged at W&B: the tables have them, the panels do not."))
    if document.missing:
        made.append(wr.UnorderedList(items=list(document.missing)))
    for section in _sections(document, panels):
        shown = [made_of for block in section.blocks for made_of in _block(wr, block)]
        if section.id in panels:
            shown.append(wr.PanelGrid(runsets=_runsets(wr, told, entity, project), panels=panels[section.id]))
        if shown:
            made += [wr.H2(section.title), *shown]
    return made


def _sections(document: Document, panels: Mapping[str, Sequence[Any]]) -> Iterator[Section]:
    """The document's, those that only panels fill, and the papers' numbers."""
    yield from document.sections
    there = {section.id for section in document.sections}
    for name, title in _HEADS.items():
        if name in panels and name not in there:
            yield Section(name, title)
    if reference := paper_table(document):
        yield Section("paper", "The paper's numbers", [reference])


def _block(wr: Any, block: Block) -> Iterator[Any]:
    """A block of the document; pictures are W&B's own panels here."""
    if isinstance(block, Table):
        yield wr.MarkdownBlock(block.to_markdown())
    elif isinstance(block, Paragraph):
        yield wr.P(block.text)
    elif isinstance(block, Code):
        code = wr.CodeBlock(block.text, language=None)
        yield wr.H3(block.title, collapsed_blocks=[code] if block.folded else None)
        if not block.folded:
            yield code
    else:
        assert isinstance(block, Chart)


def _runsets(wr: Any, told: Sequence[Mapping[str, Any]], entity: str, project: str) -> list[Any]:
    """The runs that the report is about, a set for each project."""
    projects: dict[tuple[str, str], list[str]] = {}
    for one in told:
        projects.setdefault((one["entity"] or entity, one["project"] or project), []).append(one["id"])
    return [
        wr.Runset(entity=owner, project=name, name=name, filters=f"Metric('ID') in [{', '.join(map(repr, ids))}]")
        for (owner, name), ids in projects.items()
    ]


def _panels(wr: Any, metrics: Sequence[MetricsRow]) -> dict[str, list[Any]]:
    """Panels by section, where the runs with these metrics have something to show in them."""

    def summary(name: str) -> Any:
        return wr.SummaryMetric(name)

    def scatter(name: str, title: str, log: bool = False) -> Any:
        return wr.ScatterPlot(title=f"accuracy by {title}", x=summary(name), y=summary("accuracy"), log_x=log)

    axes = [name for name in _AXES if len({one.get(name) for one in metrics} - {None}) > 1]
    found: dict[str, list[Any]] = {
        "results": [
            wr.BarPlot(title="accuracy", metrics=["accuracy"], orientation="h"),
        ],
        "scaling": [scatter(name, _AXES[name], log=name != "teacher_accuracy") for name in axes],
        "samples": [wr.WeavePanelSummaryTable(table_name="samples/test"), wr.WeavePanelSummaryTable(table_name="samples/rationales")],
        "configs": [wr.RunComparer(diff_only="split")],
    }
    values = [one.get("varied") or {} for one in metrics]  # what sweeps varied beside that, as it stands in the runs' configurations
    for key in dict.fromkeys(key for one in values for key in one):
        if len(known := {one[key] for one in values if key in one}) > 1 and None not in {number(value) for value in known}:
            found["scaling"].append(wr.ScatterPlot(title=f"accuracy by {key}", x=wr.Config(key), y=summary("accuracy")))
    if any((one.get("teacher_usage") or {}).get("usd") for one in metrics):
        found["cost"] = [scatter("teacher_usage.usd", "dollars for the teacher")]
    rounds = sorted({held["round"] for one in metrics for held in one.get("rounds", ())})
    if rounds:
        found["rounds"] = [
            wr.LinePlot(title=f"{name.replace('_', ' ')} by round", x="rounds/round", y=[f"rounds/{name}"])
            for name in ("accuracy", "validation_accuracy", "mistakes", "completions_kept")
        ]
    trained = [one for one in metrics if one.get("n_steps")]
    prefixes = [*(["train"] if any(not one.get("rounds") for one in trained) else []), *(f"round_{number}/train" for number in rounds)]
    if trained:
        found["training"] = [
            wr.LinePlot(title=f"{prefix}: {name.replace('_', ' ')}", x=f"{prefix}/step", y=[f"{prefix}/{name}"])
            for prefix in prefixes
            for name in ("loss", "validation_accuracy")
        ]
    return {name: _laid_out(wr, panels) for name, panels in found.items() if panels}


def _laid_out(wr: Any, panels: Sequence[Any]) -> list[Any]:
    """Two beside each other; tables and comparers over the whole width."""
    row = column = 0
    for panel in panels:
        wide = isinstance(panel, wr.WeavePanelSummaryTable | wr.RunComparer)
        if wide and column:
            row, column = row + 8, 0
        panel.layout = wr.Layout(x=column, y=row, w=24 if wide else 12, h=10 if wide else 8)
        if wide:
            row += 10
        else:
            row, column = (row, 12) if column == 0 else (row + 8, 0)
    return list(panels)


def paper_table(document: Document) -> Table | None:
    """What paper A reports for the tasks of these runs, on whole train splits; None where it reports nothing."""
    tasks = {run.metrics["task"] for run in document.runs}
    words = ("task", "student", "method", "source")
    table = Table("paper", "published, paper A", ("task", "student", "method", "D", "accuracy %", "source"), words)
    for one in published():
        if one.task in tasks and one.subset is None:
            method = METHODS[one.method].title
            table.add_row(one.task, one.student, method, str(one.diversity or "-"), f"{one.percent:.2f}", one.source)
    return table if table.rows else None
