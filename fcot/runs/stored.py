"""Completions of a run's prompts that the run does not use: stored under another data set or prompt name, token limit or temperature."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fcot.base.console import say
from fcot.base.errors import FcotError
from fcot.base.records import Problem
from fcot.llm.requests import Request
from fcot.llm.store.adoption import Settings, adopted, fitting, settings_in
from fcot.llm.store.folder import Shard, StoreFolder, is_shard_file, open_folder, readable
from fcot.llm.store.rows import StoreRow
from fcot.runs.run import Run

_MAKES_NO_RUN = ("dry_run=", "preview=", "until=")  # prefixes of overrides


@dataclass(frozen=True)
class Elsewhere:
    """A folder of the store with answers to a run's prompts, under some settings.

    Attributes:
        run: The run.
        folder: The folder.
        settings: The settings of the requests: ``max_tokens``, ``temperature``, ``model`` and others.
    """

    run: Run
    folder: StoreFolder
    settings: Settings

    @property
    def name(self) -> str:
        """Task, model and prompt: the folder's path in the store."""
        return str(self.folder.path.relative_to(self.run.store_dir))

    @property
    def limit(self) -> int:
        """The limit of a rationale, in tokens."""
        return int(self.settings["max_tokens"])

    @property
    def same_temperature(self) -> bool:
        """Whether the run requests this temperature, too."""
        return bool(self.settings.get("temperature") == self.run.plan.teacher.identity.get("temperature"))

    @property
    def same_requests(self) -> bool:
        """Whether the requests are the run's own, in another folder."""
        return self.same_temperature and self.limit == self.run.prompt.rationale_tokens

    def key(self, problem: Problem) -> str:
        """The key of a problem's step-1 request under these settings."""
        request = self.run.plan.step1(problem)
        identity = {name: value for name, value in self.settings.items() if name not in ("max_tokens", "stop")}
        return Request(request.prompt, self.limit, tuple(self.settings.get("stop", ()))).key(identity)

    def rationales(self, problem: Problem) -> list[StoreRow]:
        """The rationales of a problem that are the same under the run's own limit."""
        key = self.key(problem)
        shard = self.folder.shard(key)
        if self.same_requests:
            return [shard.row(key, slot) for slot in shard.slots(key)]
        return fitting(shard, key, self.limit, self.run.prompt.rationale_tokens) if self.same_temperature else []

    @cached_property
    def n_stored(self) -> int:
        """Number of stored rationales of the run's train problems."""
        return sum(len(self.folder.shard(key).slots(key)) for key in self._keys)

    @cached_property
    def n_fitting(self) -> int:
        """Number of these that can be adopted."""
        return sum(len(self.rationales(problem)) for problem in self._keys.values())

    @cached_property
    def _keys(self) -> dict[str, Problem]:
        return {self.key(problem): problem for problem in self.run.select(self.run.split.train)}


def elsewhere(run: Run, folders: Sequence[Path] | None = None) -> Iterator[Elsewhere]:
    """Find answers to a run's prompts by the same model that the run does not use.

    Args:
        run: A run with a teacher that generates.
        folders: Folders of the store to look into; None: all of this model.
    """
    plan, model = run.plan, readable(str(run.teacher_name))
    stop = {"stop": list(run.prompt.stop)} if run.prompt.stop else {}
    own = {"max_tokens": run.prompt.rationale_tokens, **stop, **plan.teacher.identity}
    ignored = {"max_tokens": None, "temperature": None}
    for path in sorted(run.store_dir.glob(f"*/{model}/*")) if folders is None else folders:
        if not any(map(is_shard_file, path.glob("*.jsonl"))):
            continue
        folder = open_folder(path)
        for settings in settings_in(folder):
            is_own = path.resolve() == run.store.path.resolve() and settings == own
            if not is_own and settings | ignored == own | ignored:
                yield Elsewhere(run, folder, settings)


def elsewhere_notes(run: Run, overrides: Sequence[str], is_new: Callable[..., bool]) -> Iterator[str]:
    """Notes of a dry run about completions that the run does not use, with the overrides or the command that use them.

    Args:
        run: The run.
        overrides: The run's overrides, for the command.
        is_new: Called with what a note is about; False if an earlier run of the sweep had this note.
    """
    for place in elsewhere(run):
        about = (str(place.folder.path), place.limit, str(place.settings.get("temperature")), tuple(run.split.train))
        if not is_new(*about) or not place.n_stored:
            continue
        where, use = _differences(place)
        note = f"{place.n_stored:,} rationales of these problems are stored {' and '.join(where)}, and not used: "
        ways = [f"{' '.join(use)} uses them"] if use else []
        if place.same_temperature and place.n_fitting:
            words = [word for word in overrides if not word.startswith(_MAKES_NO_RUN)]
            which = "them" if place.n_fitting == place.n_stored else f"the {place.n_fitting:,} that fit"
            ways.append(f"`{shlex.join(['fcot', 'store', 'adopt', place.name, *words])}` adopts {which}")
        if ways:
            yield note + ", or ".join(ways)


def _differences(place: Elsewhere) -> tuple[list[str], list[str]]:
    """In what a place differs from where the run looks, in words; and the overrides that make the run look there."""
    run = place.run
    task, _, prompt = place.folder.path.parts[-3:]
    own_task, _, own_prompt = run.store.path.parts[-3:]
    where, use = [], []
    if task != own_task:
        where.append(f"under the name {task}")
        use.append(f"dataset.name={task}" if not run.config.dataset.toy and hasattr(run.config.dataset, "answer_type") else "")
    if prompt != own_prompt:
        where.append(f"under prompt.name={prompt}")
        use.append(f"prompt.name={prompt}")
    if place.limit != run.prompt.rationale_tokens:
        where.append(f"with prompt.rationale_tokens={place.limit}")
        use.append(f"prompt.rationale_tokens={place.limit}")
    if not place.same_temperature:
        temperature = place.settings.get("temperature")
        where.append(f"at temperature {temperature:g}" if isinstance(temperature, float | int) else "at the server's temperature")
        use.append(f"teacher.temperature={temperature:g}" if isinstance(temperature, float | int) else "")
    return where, use if all(use) else []


def adopt(run: Run, folder: Path) -> str:
    """Copy the answers to a run's prompts from another folder, or from another limit, so that the run uses them as its own.

    Rationales of another limit are adopted if they ended by themselves within both limits.

    Returns:
        A sentence about what was adopted.

    Raises:
        FcotError: The folder has no answers to the run's prompts that it could use.
    """
    places = [place for place in elsewhere(run, [folder]) if place.same_temperature]
    n_adopted = n_known = n_left = 0
    problems = {run.plan.key(run.plan.step1(problem)): problem for problem in run.problems.values()}
    with run.store.exclusive(say):
        run.store.refresh()
        for place in places:
            place.folder.refresh()
            for problem in problems.values():
                rows = place.rationales(problem)
                n_new = _adopt_problem(place, problem, rows)
                n_adopted, n_known = n_adopted + n_new, n_known + len(rows) - n_new
                n_left += len(place.folder.shard(key := place.key(problem)).slots(key)) - len(rows)
    if not (n_adopted or n_known or n_left):
        raise FcotError(
            f"{folder}: no completion in it answers a prompt of this configuration at its temperature; fcot store list shows what there is"
        )
    known = f", {n_known:,} were adopted before" if n_known else ""
    left = f"; {n_left:,} were cut or may not fit into {run.prompt.rationale_tokens} tokens, and are not" if n_left else ""
    return f"{run.store.path}: {n_adopted:,} completions adopted from {folder}{known}{left}"


def _adopt_problem(place: Elsewhere, problem: Problem, rows: Sequence[StoreRow]) -> int:
    """Append the rows of a problem's step-1 and step-2 requests that the run's own folder lacks. Returns the number of new rationales."""
    run, plan = place.run, place.run.plan
    source_key, key = place.key(problem), plan.root_key(run.store, problem)
    source, target = place.folder.shard(source_key), run.store.shard(key)
    if place.same_requests:  # also what was refused, and what only records a cost
        rows = [*rows, *source.unusable_rows(source_key), *source.cost_only_rows(source_key)]
    request = plan.step1(problem)
    identities = (plan.teacher.identity, *getattr(plan.teacher, "older_identities", ()))
    canonical = next(request.canonical(identity) for identity in identities if request.key(identity) == key)
    new = list(adopted(rows, target, key, None, place.name, canonical))
    rationales = [row for row in new if row["slot"] is not None]
    answers = _answers(place, problem, rationales, source, target) if plan.prompt.two_steps else ()
    originals = {(row["request"], row["choice"]): row for row in rows}
    tops = ((row, source.distributions.get(originals[row["request"], row["choice"]])) for row in rationales)
    target.append([*new, *answers], [(row, top) for row, top in tops if top is not None])
    return len(rationales)


def _answers(place: Elsewhere, problem: Problem, rationales: Sequence[StoreRow], source: Shard, target: Shard) -> Iterator[StoreRow]:
    """The rows of the answers to rationales that are adopted: for each rationale one, if the source has it."""
    plan = place.run.plan
    keys: Counter[str] = Counter()  # repeated rationales share a step-2 key
    for row in rationales:
        candidates = plan.step2_keys(plan.step2(problem, row), problem, row)
        keys.update([key for key in candidates if source.slots(key)][:1])
    for key, n in keys.items():
        taken = {row["request"] for row in target.all_rows(key)}
        free = [row for slot in source.slots(key) if (row := source.row(key, slot))["request"] not in taken]
        yield from adopted(free[:n], target, key, rationales[0]["key"], place.name, {})
