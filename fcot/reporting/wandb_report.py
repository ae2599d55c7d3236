"""Publish a report as a W&B Report: the document's tables and text, and W&B's own charts over its runs."""

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

# Axes of scaling charts: keys of the runs' summaries, with their titles.
_AXES = {
    "diversity": "D", "n_train_problems": "train problems", "n_reasoning_samples": "reasoning samples",
    "n_parameters": "parameters of the student", "teacher_accuracy": "accuracy of the teacher",
}  # fmt: skip
_HEADINGS = {  # of sections that may have panels without other content
    "results": "Results", "scaling": "Scaling", "cost": "Cost", "training": "Training", "samples": "Samples", "rounds": "Rounds",
    "configs": "Configurations",
}  # fmt: skip
_TITLE = 128  # maximum number of characters


def publish(document: Document, entity: str | None, project: str | None, folder: Path, command: str) -> str:
    """Create a W&B Report, or update the one created earlier. Without a server, write its spec to a file.

    Args:
        document: The report.
        entity: User or team; None takes that of the runs or, without one, the key's own.
        project: W&B project; None takes that of the runs.
        folder: The report's folder, for its URL (``report_wandb_url.json``) or its spec (``report_wandb.json``).
        command: The command that publishes the report, for messages.

    Returns:
        The report's URL, or the path of the spec.

    Raises:
        FcotError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ModuleNotFoundError as error:
        raise FcotError("a W&B Report needs wandb-workspaces: pip install 'fcot[wandb-report]'") from error
    logged = [read_json(run.directory.wandb) for run in document.runs if run.directory.wandb.exists()]
    if n := len(document.runs) - len(logged):
        print(f"W&B Report: {n} of {len(document.runs)} runs were not logged at W&B; to log them, run their commands with logger=wandb")
    project = project or next((run["project"] for run in logged), "fcot")
    entity = entity or next((run["entity"] for run in logged if run["entity"]), None)
    outputs = document.runs[0].directory.path.parent.parent if document.runs else folder
    with wandb_folder(outputs / "cache" / "wandb"):
        try:
            own = account()
            entity = entity or own
            if entity is None:
                raise Offline("the server does not report the key's user or team: set WANDB_ENTITY=...")
            url = _save(wr, document, logged, entity, project, folder / "report_wandb_url.json")
        except Offline as error:
            return _write_spec(wr, document, logged, folder / "report_wandb.json", str(error), command)
        except Exception as error:  # wandb and requests have many classes
            return _write_spec(wr, document, logged, folder / "report_wandb.json", f"{type(error).__name__}: {error}", command)
    (folder / "report_wandb.json").unlink(missing_ok=True)  # from an earlier call without a server
    print(f"W&B Report: {url}")
    return url


def _save(wr: Any, document: Document, logged: Sequence[Mapping[str, Any]], entity: str, project: str, url_file: Path) -> str:
    """Create the report, or update the one in ``url_file``; return its URL.

    Raises:
        Offline: W&B did not save it.
    """
    earlier = read_json(url_file) if url_file.exists() else {}
    report = wr.Report(entity=entity, project=project)
    if (earlier.get("entity"), earlier.get("project")) == (entity, project):
        report.id = earlier["id"]
    report.title = document.title[:_TITLE]
    report.description, report.width = "Made by fcot from the runs' files", "fluid"
    report.blocks = blocks(wr, document, logged, entity, project)
    try:
        report.save()
    except Exception as error:
        hint = f" (if {earlier['url']} was deleted at W&B, remove {url_file})" if earlier else ""
        raise Offline(f"{type(error).__name__}: {error}{hint}") from error
    url = str(report.url)
    write_json(url_file, {"url": url, "id": report.id, "entity": entity, "project": project})
    return url


def _write_spec(wr: Any, document: Document, logged: Sequence[Mapping[str, Any]], path: Path, why: str, command: str) -> str:
    """Write the spec to a file, and print how to publish the report later."""
    report = wr.Report(entity="", project="", title=document.title[:_TITLE], blocks=blocks(wr, document, logged, "", ""), width="fluid")
    write_atomic(path, report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True) + "\n")
    print(f"W&B Report: not published ({why}); its spec: {path}")
    print(f"to publish it later, set {KEY} and run: {command}")
    return str(path)


def blocks(wr: Any, document: Document, logged: Sequence[Mapping[str, Any]], entity: str, project: str) -> list[Any]:
    """The blocks of the W&B Report.

    Args:
        wr: The module ``wandb_workspaces.reports.v2``.
        document: The report.
        logged: Id, project and entity of each run that was logged at W&B; the panels show these runs only.
        entity: The user or team of runs without one.
        project: The project of runs without one.
    """
    metrics = [run.metrics for run in document.runs if run.directory.wandb.exists()]
    panels = _panels(wr, metrics) if logged else {}
    report_blocks = [wr.TableOfContents(), wr.P(document.answer)]
    if len(logged) < len(document.runs):
        n = len(document.runs) - len(logged)
        report_blocks.append(wr.P(f"{n} of {len(document.runs)} runs were not logged at W&B: the tables have them, the panels do not."))
    if document.missing:
        report_blocks.append(wr.UnorderedList(items=list(document.missing)))
    for section in _sections(document, panels):
        shown = [wandb_block for block in section.blocks for wandb_block in _block(wr, block)]
        if section.id in panels:
            shown.append(wr.PanelGrid(runsets=_runsets(wr, logged, entity, project), panels=panels[section.id]))
        if shown:
            report_blocks += [wr.H2(section.title), *shown]
    return report_blocks


def _sections(document: Document, panels: Mapping[str, Sequence[Any]]) -> Iterator[Section]:
    """The document's sections, those that have panels only, and paper A's accuracies."""
    yield from document.sections
    present = {section.id for section in document.sections}
    for name, title in _HEADINGS.items():
        if name in panels and name not in present:
            yield Section(name, title)
    if reference := paper_table(document):
        yield Section("paper", "The paper's numbers", [reference])


def _block(wr: Any, block: Block) -> Iterator[Any]:
    """A block of the document as W&B's blocks. Charts are left out: W&B's panels show the same."""
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


def _runsets(wr: Any, logged: Sequence[Mapping[str, Any]], entity: str, project: str) -> list[Any]:
    """The report's runs, as one run set per project."""
    projects: dict[tuple[str, str], list[str]] = {}
    for run in logged:
        projects.setdefault((run["entity"] or entity, run["project"] or project), []).append(run["id"])
    return [
        wr.Runset(entity=owner, project=name, name=name, filters=f"Metric('ID') in [{', '.join(map(repr, ids))}]")
        for (owner, name), ids in projects.items()
    ]


def _panels(wr: Any, metrics: Sequence[MetricsRow]) -> dict[str, list[Any]]:
    """W&B's panels by section id, as far as runs with these metrics have data for them."""

    def summary(name: str) -> Any:
        return wr.SummaryMetric(name)

    def scatter(name: str, title: str, log: bool = False) -> Any:
        return wr.ScatterPlot(title=f"accuracy by {title}", x=summary(name), y=summary("accuracy"), log_x=log)

    axes = [name for name in _AXES if len({run.get(name) for run in metrics} - {None}) > 1]
    panels: dict[str, list[Any]] = {
        "results": [
            wr.BarPlot(title="accuracy", metrics=["accuracy"], orientation="h"),
        ],
        "scaling": [scatter(name, _AXES[name], log=name != "teacher_accuracy") for name in axes],
        "samples": [wr.WeavePanelSummaryTable(table_name="samples/test"), wr.WeavePanelSummaryTable(table_name="samples/rationales")],
        "configs": [wr.RunComparer(diff_only="split")],
    }
    varied = [run.get("varied") or {} for run in metrics]  # other keys that sweeps varied: keys of the runs' configurations
    for key in dict.fromkeys(key for of_run in varied for key in of_run):
        if len(values := {of_run[key] for of_run in varied if key in of_run}) > 1 and None not in {number(value) for value in values}:
            panels["scaling"].append(wr.ScatterPlot(title=f"accuracy by {key}", x=wr.Config(key), y=summary("accuracy")))
    if any((run.get("teacher_usage") or {}).get("usd") for run in metrics):
        panels["cost"] = [scatter("teacher_usage.usd", "dollars for the teacher")]
    rounds = sorted({round_metrics["round"] for run in metrics for round_metrics in run.get("rounds", ())})
    if rounds:
        panels["rounds"] = [
            wr.LinePlot(title=f"{name.replace('_', ' ')} by round", x="rounds/round", y=[f"rounds/{name}"])
            for name in ("accuracy", "validation_accuracy", "mistakes", "completions_kept")
        ]
    trained = [run for run in metrics if run.get("n_steps")]
    prefixes = [*(["train"] if any(not run.get("rounds") for run in trained) else []), *(f"round_{number}/train" for number in rounds)]
    if trained:
        panels["training"] = [
            wr.LinePlot(title=f"{prefix}: {name.replace('_', ' ')}", x=f"{prefix}/step", y=[f"{prefix}/{name}"])
            for prefix in prefixes
            for name in ("loss", "validation_accuracy")
        ]
    return {name: _laid_out(wr, of_section) for name, of_section in panels.items() if of_section}


def _laid_out(wr: Any, panels: Sequence[Any]) -> list[Any]:
    """Place panels in two columns; tables and run comparers take the whole width."""
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
    """Paper A's accuracies on the tasks of the runs, for whole train splits; None if it has none."""
    tasks = {run.metrics["task"] for run in document.runs}
    words = ("task", "student", "method", "source")
    table = Table("paper", "published, paper A", ("task", "student", "method", "D", "accuracy %", "source"), words)
    for cell in published():
        if cell.task in tasks and cell.subset is None:
            method = METHODS[cell.method].title
            table.add_row(cell.task, cell.student, method, str(cell.diversity or "-"), f"{cell.percent:.2f}", cell.source)
    return table if table.rows else None
