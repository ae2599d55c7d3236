"""The comparison as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fcot.artifacts import disk_error
from fcot.reporting.tables import Metrics, label

COLOURS = {"zero_shot": "#9a9a9a", "fine_tune": "#d9a441", "fine_tune_cot": "#2f6fa8"}


def accuracy_figure(runs: Sequence[Metrics], path: Path) -> None:
    """A bar a run with its 95 % Wilson interval, one panel per task and student; PNG or SVG by the suffix of ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[tuple[str, str], list[Metrics]] = {}
    for metrics in runs:
        panels.setdefault((metrics["task"], metrics["student"]), []).append(metrics)
    heights = [0.7 + 0.42 * len(group) for group in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(7.5, sum(heights) + 0.5), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axis, ((task, student), group) in zip(axes[:, 0], panels.items(), strict=True):
        for position, metrics in enumerate(group):
            low, high = (100 * bound for bound in metrics["accuracy_ci95"])
            value = 100 * metrics["accuracy"]
            axis.barh(position, value, color=COLOURS[metrics["method"]], height=0.65)
            axis.errorbar(value, position, xerr=[[value - low], [high - value]], color="#222222", capsize=3, lw=1.2)
            axis.text(max(high, value) + 1.5, position, f"{value:.1f}", va="center", fontsize=9)
        axis.set_yticks(range(len(group)), [label(metrics, group) for metrics in group])
        axis.invert_yaxis()
        axis.set_xlim(0, 112)
        axis.set_xticks(range(0, 101, 20))
        sizes = sorted({metrics["n_test"] for metrics in group})
        n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        axis.set_title(f"{task}, {student}, n = {n}", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("test accuracy, %, with 95 % Wilson interval")
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    finally:
        pyplot.close(figure)
