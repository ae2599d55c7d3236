"""From problems to completions: stored ones are reused, missing ones are bought once, in both steps."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest
from teachers import PROMPT, RULE, Scripted, plan, problems

from fcot.base.errors import FcotError
from fcot.base.records import Completion
from fcot.llm.generate import generate_completions, used_tokens
from fcot.llm.requests import NO_ACCOUNT, Choice, Reply, Request, Usage
from fcot.llm.store.folder import StoreFolder
from fcot.teacher.oracle import Oracle


class CountingOracle(Oracle):
    """The oracle with several requests in flight; records its calls."""

    concurrency = 3

    def __init__(self, error_rate=0.0, temperature=0.7, max_choices=64):
        super().__init__("toy_arithmetic", error_rate, temperature)
        self.max_choices = max_choices
        self.calls = []

    async def generate(self, request, n, seed, account=NO_ACCOUNT):
        self.calls.append((request, n, seed))
        await asyncio.sleep(0)
        return await super().generate(request, n, seed)


NOTHING = {
    "requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "requests_without_usage": 0,
    "requests_lost": 0, "usd": None,
    "served_from_store": 0, "identical_rationales": 0, "used_prompt_tokens": None, "used_completion_tokens": None,
}  # fmt: skip


@pytest.fixture
def generate(tmp_path):
    """Generates into the test's store, which is opened again for each call, as by a new process."""

    def run(teacher, diversity, chosen_problems=None, prompt=PROMPT, run_id="run", resample_identical=False, **options):
        purchase = plan(teacher, diversity, prompt, run_id, resample_identical=resample_identical)
        generated = generate_completions(
            purchase, StoreFolder(tmp_path / "store"), problems(5) if chosen_problems is None else chosen_problems, **options
        )
        return list(generated), generated.usage()

    return run


def rows_of(tmp_path):
    return [json.loads(line) for shard in sorted((tmp_path / "store").glob("*.jsonl")) for line in shard.read_text().splitlines()]


def rationales(completions, sample_index=0):
    return [completion.rationale for completion in completions if completion.sample_index == sample_index]


# --- the oracle -----------------------------------------------------------------------------------------------------


def test_the_oracle_writes_distinct_wordings_that_reach_the_gold_answer(generate):
    completions, _ = generate(CountingOracle(), 64)
    assert [(c.sample_index, c.completion_index) for c in completions] == [(i, slot) for i in range(5) for slot in range(64)]
    for problem in problems(5):
        assert len(set(rationales(completions, problem.sample_index))) == 64
    gold = {problem.sample_index: problem.answer for problem in problems(5)}
    assert all(RULE.same(PROMPT.parse(c, RULE), gold[c.sample_index]) for c in completions)
    assert {c.finish_reason for c in completions} == {"stop"}


@pytest.mark.parametrize("max_choices", [1, 3, 64])
def test_more_diversity_adds_to_stored_completions_for_any_request_size(generate, max_choices):
    bought = {d: generate(CountingOracle(0.3, max_choices=max_choices), d)[0] for d in (1, 4, 64)}
    for smaller in (1, 4):
        assert bought[smaller] == [completion for completion in bought[64] if completion.completion_index < smaller]
    assert generate(CountingOracle(0.3), 4)[0] == bought[4]


def test_the_result_does_not_depend_on_the_order_in_which_it_was_bought(generate, tmp_path):
    in_steps = [generate(CountingOracle(0.3), d, problems(n))[0] for d, n in ((4, 2), (2, 5), (8, 5))][-1]
    (tmp_path / "store").rename(tmp_path / "other")
    assert generate(CountingOracle(0.3), 8, problems(5))[0] == in_steps


def test_the_error_rate_makes_wrong_answers_and_changes_no_other(generate):
    without_errors, with_errors = generate(CountingOracle(0.0), 64)[0], generate(CountingOracle(0.25), 64)[0]
    gold = {problem.sample_index: problem.answer for problem in problems(5)}
    slips = [not RULE.same(PROMPT.parse(c, RULE), gold[c.sample_index]) for c in with_errors]
    assert 0.15 < sum(slips) / len(slips) < 0.35
    assert all((a == b) != slip for a, b, slip in zip(without_errors, with_errors, slips, strict=True))


def test_the_oracle_knows_the_toy_tasks_only():
    with pytest.raises(FcotError, match="toy_arithmetic, toy_comparison, toy_coin_flip, toy_last_letter"):
        Oracle("gsm8k", 0.0, 0.7)


# --- what is bought and what is not -----------------------------------------------------------------------------------


def test_a_second_call_sends_no_request_and_reports_what_the_store_served(generate):
    first, usage = generate(CountingOracle(), 4, run_id="one")
    assert usage == NOTHING | {"requests": 5 + 20, "requests_without_usage": 5 + 20}
    second_teacher = CountingOracle()
    second, usage = generate(second_teacher, 4, run_id="two")
    assert (second_teacher.calls, second) == ([], first)
    assert usage == NOTHING | {"served_from_store": 2 * 20}
    assert generate(CountingOracle(), 2, run_id="three")[1]["served_from_store"] == 2 * 10
    last_teacher = CountingOracle()
    _, usage = generate(last_teacher, 6, run_id="four")
    assert [(n, first_slot) for request, n, first_slot in last_teacher.calls if request.root is None] == [(2, 4)] * 5
    assert (usage["requests"], usage["served_from_store"]) == (5 + 10, 2 * 20)


def test_corrected_answers_other_indices_and_added_problems_buy_nothing_twice(generate):
    generate(CountingOracle(), 4)
    changed = [replace(p, answer="999", sample_index=p.sample_index + 100, rationale="human", template_id="x") for p in problems(5)]
    teacher = CountingOracle()
    completions, _ = generate(teacher, 4, changed)
    assert teacher.calls == []
    assert [c.sample_index for c in completions] == [100 + i for i in range(5) for _ in range(4)]
    generate(teacher, 4, problems(7)[::-1])
    assert {request.problem.sample_index for request, _, _ in teacher.calls} == {5, 6}


@pytest.mark.parametrize(
    ("teacher", "prompt"),
    [
        (CountingOracle(temperature=1.0), PROMPT),
        (CountingOracle(error_rate=0.5), PROMPT),
        (CountingOracle(), replace(PROMPT, template="Q: {question}\nA: Think.")),
        (CountingOracle(), replace(PROMPT, rationale_tokens=256)),
    ],
    ids=["temperature", "error rate", "prompt", "rationale tokens"],
)
def test_a_changed_request_is_bought_again(generate, teacher, prompt):
    generate(CountingOracle(), 4)
    generate(teacher, 4, prompt=prompt)
    assert sum(n for request, n, _ in teacher.calls if request.root is None) == 20
    assert sum(n for request, n, _ in teacher.calls if request.root is not None) == 20


@pytest.mark.parametrize("prompt", [replace(PROMPT, answer_triggers={"number": "So it is"}), replace(PROMPT, answer_tokens=32)])
def test_a_change_of_step_2_keeps_the_rationales(generate, prompt):
    first, _ = generate(CountingOracle(), 4)
    teacher = CountingOracle()
    second, _ = generate(teacher, 4, prompt=prompt)
    assert [request.root is None for request, _, _ in teacher.calls] == [False] * 20
    assert [c.rationale for c in second] == [c.rationale for c in first]


def test_the_key_contains_only_what_changes_the_distribution():
    first_problem, second_problem = problems(2)
    identity = {"model": "m", "temperature": 0.7}
    request = Request("text", 128, problem=first_problem)
    assert request.key(identity) == Request("text", 128, root="r", problem=second_problem, rationale="r").key(identity)
    as_chat = Request([{"role": "user", "content": "text"}], 128)
    other_keys = [request.key(identity | {"model": "n"}), Request("text", 129).key(identity), as_chat.key(identity)]
    assert len({request.key(identity), *other_keys}) == 4
    assert as_chat.key(identity) == Request([{"content": "text", "role": "user"}], 128).key(identity)


def test_problems_with_the_same_question_share_their_completions(generate):
    twins = [*problems(2), replace(problems(1)[0], sample_index=77)]
    teacher, advances = CountingOracle(), []
    completions, usage = generate(teacher, 4, twins, advance=advances.append)
    assert sum(n for request, n, _ in teacher.calls if request.root is None) == 8
    assert rationales(completions, 77) == rationales(completions, 0)
    assert usage["requests"] == len(teacher.calls)
    assert sum(advances) == 3 * 4


def test_progress_counts_every_completion_once_stored_or_bought(generate):
    for diversity, n in ((2, 3), (2, 3), (5, 4), (3, 5)):
        advances = []
        generate(CountingOracle(), diversity, problems(n), advance=advances.append)
        assert sum(advances) == diversity * n


# --- two steps --------------------------------------------------------------------------------------------------------


def two_steps(rationale_of):
    """A teacher with the rationale ``rationale_of(slot)`` in each slot, and answers that contain their slot."""

    def answer(request, n, first_slot):
        return [rationale_of(first_slot + i) if request.root is None else f" answer {first_slot + i}" for i in range(n)]

    return answer


def test_step_2_continues_the_rationale_and_is_stored_in_its_shard(generate, tmp_path):
    teacher = Scripted(two_steps(lambda slot: f" because {slot}"), max_choices=3)
    generate(teacher, 3, problems(1))
    question = problems(1)[0].question
    prompts = [request.prompt for request, _, _ in teacher.calls]
    first_prompt = f"Q: {question}\nA: Let's think step by step."
    assert prompts == [first_prompt, *(f"{first_prompt} because {slot}\nTherefore, the answer is" for slot in range(3))]
    assert [request.max_tokens for request, _, _ in teacher.calls] == [128, 16, 16, 16]
    assert len(list((tmp_path / "store").glob("*.jsonl"))) == 1
    step1, *step2 = [[row for row in rows_of(tmp_path) if row["key"] == key] for key in dict.fromkeys(r["key"] for r in rows_of(tmp_path))]
    assert {row["root"] for rows in step2 for row in rows} == {step1[0]["key"]}
    assert [row["asked"]["prompt"] for row in step1 if row["slot"] == 0] == prompts[:1]
    assert [row["of"] for rows in step2 for row in rows] == [0, 1, 2]
    assert not [row for rows in step2 for row in rows if "asked" in row], "the prompt of step 2 would repeat question and rationale"


def test_each_of_several_repeated_rationales_gets_an_answer(generate, tmp_path):
    answer = two_steps(lambda slot: " the same" if slot != 2 else " another")
    teacher, advances = Scripted(answer, max_choices=2), []
    completions, usage = generate(teacher, 5, problems(1), advance=advances.append)
    assert [(c.rationale, c.answer_text) for c in completions] == [
        (" the same", " answer 0"),
        (" the same", " answer 1"),
        (" another", " answer 0"),
        (" the same", " answer 2"),
        (" the same", " answer 3"),
    ]
    assert teacher.asked(2) == 5
    assert sum(advances) == 5
    second_teacher = Scripted(answer)
    assert generate(second_teacher, 5, problems(1), run_id="two")[0] == completions
    shorter, usage = generate(second_teacher, 2, problems(1), run_id="two")
    assert shorter == completions[:2]
    assert usage["served_from_store"] == 2 * 2
    generate(second_teacher, 6, problems(1))
    assert [(request.root is None, n, first_slot) for request, n, first_slot in second_teacher.calls] == [(True, 1, 5), (False, 1, 4)]


# --- unusable, missing and surplus choices ------------------------------------------------------------------------------


def test_an_unusable_answer_is_kept_and_bought_again(generate, tmp_path):
    served = Counter()

    def answer(request, n, first_slot):
        served[request.prompt] += 1
        text = " because" if request.root is None else " 7"
        return [Choice("bad", "content_filter", "content_filter") if served[request.prompt] == 1 else text]

    completions, usage = generate(Scripted(answer), 1)
    assert {(c.rationale, c.answer_text, c.finish_reason) for c in completions} == {(" because", " 7", "stop")}
    unusable = [row for row in rows_of(tmp_path) if row["slot"] is None]
    assert {(row["text"], row["refused"]) for row in unusable} == {("bad", "content_filter")}
    assert len(unusable) == 10
    assert usage["requests"] == 20
    assert usage["prompt_tokens"] == 20 * 10


@pytest.mark.parametrize("reply", [[], [Choice("", "stop", "empty")], [Choice("", "content_filter", "content_filter")]])
@pytest.mark.parametrize(("diversity", "limit"), [(1, 3), (5, 5)])
def test_a_prompt_with_only_unusable_answers_is_given_up(generate, reply, diversity, limit):
    teacher, advances = Scripted(lambda *call: list(reply), concurrency=1), []
    completions, usage = generate(teacher, diversity, problems(2), advance=advances.append)
    reason = f"refused:{reply[0].refused if reply else 'empty'}"
    assert completions == [Completion(i, slot, "", "", reason) for i in range(2) for slot in range(diversity)]
    assert usage["requests"] == len(teacher.calls) == 2 * limit
    assert sum(advances) == 2 * diversity
    second_teacher = Scripted(lambda *call: list(reply))
    assert generate(second_teacher, diversity, problems(2))[0] == completions
    assert second_teacher.calls == []


def test_unusable_answers_to_step_2_give_up_only_that_completion(generate):
    def answer(request, n, first_slot):
        if request.root is None:
            return [f" because {first_slot}"]
        return [Choice("", "stop", "empty") if request.rationale == " because 1" else " 7"]

    teacher, advances = Scripted(answer), []
    completions, usage = generate(teacher, 3, problems(1), advance=advances.append)
    assert completions == [
        Completion(0, 0, " because 0", " 7", "stop"),
        Completion(0, 1, " because 1", "", "refused:empty"),
        Completion(0, 2, " because 2", " 7", "stop"),
    ]
    assert usage["requests"] == 3 + 2 + 3
    assert sum(advances) == 3


def test_missing_choices_are_requested_again(generate, tmp_path):
    def answer(request, n, first_slot):
        return [f" because {first_slot + i}" if request.root is None else " 7" for i in range(min(n, 2))]

    teacher = Scripted(answer, max_choices=5)
    completions, usage = generate(teacher, 7, problems(1))
    assert rationales(completions) == [f" because {slot}" for slot in range(7)]
    assert [(n, first_slot) for request, n, first_slot in teacher.calls if request.root is None and first_slot < 5] == [
        (5, 0),
        (3, 2),
        (1, 4),
    ]
    step1 = [row for row in rows_of(tmp_path) if row["root"] is None]
    assert {row["slot"]: (row["seed"], row["n"]) for row in step1 if row["slot"] < 5} == {
        0: (0, 5), 1: (0, 5), 2: (2, 3), 3: (2, 3), 4: (4, 1),
    }  # fmt: skip
    assert usage["requests"] == len(teacher.calls) == len({row["request"] for row in rows_of(tmp_path)})
    assert usage["used_completion_tokens"] == usage["completion_tokens"], "every returned choice is used"


def test_surplus_choices_fill_slots_that_a_larger_diversity_uses(generate, tmp_path):
    served = Counter()

    def answer(request, n, first_slot):
        served["choices"] += 9
        return [f" number {served['choices']}.{i}" for i in range(9)]

    teacher, advances = Scripted(answer, max_choices=1, concurrency=2), []
    few, usage = generate(teacher, 4, problems(1), advance=advances.append)
    assert all(c.rationale and c.answer_text for c in few)
    assert len(set(rationales(few))) == 4
    assert (teacher.asked(1), teacher.asked(2)) == (4, 4)
    assert usage["requests"] == 8
    assert sum(advances) == 4
    assert len(rows_of(tmp_path)) == 8 * 9
    assert len({(row["key"], row["slot"]) for row in rows_of(tmp_path)}) == 8 * 9
    many, _ = generate(teacher, 36, problems(1))
    assert teacher.asked(1) == 4, "9 choices each of 4 requests are 36 slots"
    assert many[:4] == few
    assert all(c.rationale and c.answer_text for c in many)


def test_surplus_choices_do_not_make_a_prompt_given_up(generate):
    """A server that ignores ``n`` returns more usable answers than the limit of unusable ones."""
    teacher = Scripted(lambda request, n, first_slot: [f" {first_slot} {i}" for i in range(8)], concurrency=1)
    completions, _ = generate(teacher, 4, problems(1))
    assert [c.finish_reason for c in completions] == ["stop"] * 4


@pytest.mark.parametrize(("max_choices", "chunks"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (64, [7])])
def test_a_request_has_at_most_max_choices(generate, max_choices, chunks):
    teacher = CountingOracle(max_choices=max_choices)
    generate(teacher, 7, problems(1))
    step1 = sorted((first, n) for request, n, first in teacher.calls if request.root is None)
    assert [n for _, n in step1] == chunks
    assert [first for first, _ in step1] == [sum(chunks[:i]) for i in range(len(chunks))]


# --- repeated rationales --------------------------------------------------------------------------------------------------------

ONE_STEP = replace(PROMPT, two_steps=False)


def texts_by_slot(*texts):
    """A teacher that gives ``texts[i]`` in slot ``i`` and a unique text in later slots; in step 2, the slot's number."""

    def answer(request, n, first_slot):
        if request.root is not None:
            return [f" answer {first_slot + i}" for i in range(n)]
        return [f" {texts[slot] if slot < len(texts) else f'new {slot}'}" for slot in range(first_slot, first_slot + n)]

    return answer


def test_repeated_rationales_are_kept_and_counted_by_default(generate):
    teacher = Scripted(texts_by_slot("same", "same", "same"))
    completions, usage = generate(teacher, 4, problems(2), ONE_STEP)
    assert rationales(completions) == [" same", " same", " same", " new 3"]
    assert teacher.asked(1) == 2 * 4
    assert usage["identical_rationales"] == 2 * 2


@pytest.mark.parametrize("max_choices", [1, 3, 8])
def test_resampling_replaces_repeated_rationales(generate, max_choices):
    teacher, advances = Scripted(texts_by_slot("same", "same", "same"), max_choices=max_choices), []
    completions, usage = generate(teacher, 4, problems(2), ONE_STEP, resample_identical=True, advance=advances.append)
    for index in range(2):
        assert rationales(completions, index) == [" same", " new 3", " new 4", " new 5"]
        assert [c.completion_index for c in completions if c.sample_index == index] == [0, 1, 2, 3]
    assert teacher.asked(1) == 2 * 6, "one replacement per repeat"
    assert usage["identical_rationales"] == 0
    assert usage["served_from_store"] == 0
    assert sum(advances) == 2 * 4


def test_the_replacement_of_a_repeated_rationale_may_be_a_repeat_too(generate):
    teacher = Scripted(texts_by_slot("a", "a", "b", "a", "b", "c"))
    completions, usage = generate(teacher, 3, problems(1), ONE_STEP, resample_identical=True)
    assert rationales(completions) == [" a", " b", " c"]
    assert (teacher.asked(1), usage["identical_rationales"]) == (6, 0)


@pytest.mark.parametrize("diversity", [1, 2, 5])
def test_resampling_buys_at_most_twice_the_diversity_and_then_keeps_repeats(generate, diversity):
    teacher, advances = Scripted(texts_by_slot(*["same"] * 50)), []
    completions, usage = generate(teacher, diversity, problems(1), ONE_STEP, resample_identical=True, advance=advances.append)
    assert rationales(completions) == [" same"] * diversity
    assert teacher.asked(1) == (1 if diversity == 1 else 2 * diversity)
    assert usage["identical_rationales"] == diversity - 1
    assert sum(advances) == diversity
    second_teacher = Scripted(texts_by_slot())
    assert generate(second_teacher, diversity, problems(1), ONE_STEP, resample_identical=True)[0] == completions
    assert second_teacher.calls == []


def test_rationales_that_differ_in_outer_white_space_are_repeats(generate):
    teacher = Scripted(texts_by_slot("same", " same\n"))
    assert rationales(generate(teacher, 2, problems(1), ONE_STEP, resample_identical=True)[0]) == [" same", " new 2"]


TEXTS = (
    ("same",) * 3, ("a", "a", "b", "a", "b", "c"), ("a", "b", "a", "b", "a", "b", "a", "b", "c"), ("a",) * 7 + ("b",), (),
    ("a", "b", "c", "c", "c", "c", "c", "d"),
)  # fmt: skip


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("prompt", [ONE_STEP, PROMPT], ids=["one step", "two steps"])
def test_the_chosen_rationales_do_not_depend_on_the_earlier_content_of_the_store(tmp_path, prompt, texts):
    def buy(folder, diversity, resample, max_choices=1):
        purchase = plan(Scripted(texts_by_slot(*texts), max_choices=max_choices), diversity, prompt, resample_identical=resample)
        return list(generate_completions(purchase, StoreFolder(tmp_path / folder), problems(2)))

    afresh = buy("empty", 4, True)
    assert len({c.rationale for c in afresh if c.sample_index == 0}) == min(4, len({*texts[:8], *range(len(texts), 8)}))
    buy("full", 64, False, 8)
    assert [c.rationale for c in buy("full", 4, True)] == [c.rationale for c in afresh]
    buy("some", 6, False)
    assert [c.rationale for c in buy("some", 4, True)] == [c.rationale for c in afresh]
    buy("smaller", 2, True)
    assert [c.rationale for c in buy("smaller", 4, True, 3)] == [c.rationale for c in afresh]
    assert buy("empty", 4, True) == afresh


def test_each_chosen_rationale_has_its_own_answer(generate):
    teacher, advances = Scripted(texts_by_slot("same", "same", "other", "same")), []
    completions, usage = generate(teacher, 3, problems(1), resample_identical=True, advance=advances.append)
    assert [(c.rationale, c.answer_text) for c in completions] == [(" same", " answer 0"), (" other", " answer 0"), (" new 4", " answer 0")]
    assert usage["requests"] == len(teacher.calls)
    assert sum(advances) == 3


def test_no_answer_is_bought_for_a_replaced_rationale(generate):
    teacher = Scripted(texts_by_slot("same", "same", "same"))
    generate(teacher, 3, problems(1), resample_identical=True)
    assert teacher.asked(1) == 5
    assert teacher.asked(2) == 3


# --- interruptions and usage ----------------------------------------------------------------------------------------------


def test_usage_is_counted_once_per_request_over_all_attempts_of_a_run(generate, tmp_path):
    calls = 0

    def breaking(after):
        def answer(request, n, first_slot):
            nonlocal calls
            if calls >= after:
                raise FcotError("the account's quota is used up")
            calls += 1
            texts = [f" {first_slot + i}" for i in range(n)]
            return Reply([Choice(text, "stop") for text in texts], Usage(100, 7 * n))

        return Scripted(answer, max_choices=4)

    for after in (2, 3, 11, 10_000):
        if after < 10_000:
            with pytest.raises(FcotError, match="quota"):
                generate(breaking(after), 8)
        else:
            completions, usage = generate(breaking(after), 8)
    assert all(c.rationale and c.answer_text for c in completions)
    assert usage["requests"] == calls == 5 * (2 + 8)
    assert usage["prompt_tokens"] == 100 * calls
    assert usage["completion_tokens"] == 7 * 2 * 5 * 8
    assert usage["served_from_store"] == 0
    assert generate(breaking(0), 8)[1] == usage, "a repeated run reports the same usage"
    rows = rows_of(tmp_path)
    assert len(rows) == len({(row["key"], row["slot"]) for row in rows}) == 2 * 5 * 8


def test_completions_that_another_run_paid_are_not_in_the_usage(generate):
    generate(CountingOracle(), 4, problems(3), run_id="one")
    _, usage = generate(CountingOracle(), 4, problems(5), run_id="two")
    assert (usage["requests"], usage["served_from_store"]) == (2 * 5, 2 * 12)


def test_requests_without_usage_count_no_tokens(generate):
    teacher = Scripted(lambda request, n, first_slot: Reply([Choice(" 1", "stop")] * n))
    assert generate(teacher, 2)[1] == NOTHING | {"requests": 20, "requests_without_usage": 20, "identical_rationales": 5}


def test_an_error_of_the_teacher_is_raised_unchanged(generate, tmp_path):
    def answer(request, n, first_slot):
        if request.problem.sample_index == 3:
            raise FcotError("one clear message")
        return [" 1"] * n

    with pytest.raises(FcotError, match=r"^one clear message$"):
        generate(Scripted(answer), 2)
    bought = {row["sample_index"] for row in rows_of(tmp_path)}
    assert bought
    assert 3 not in bought


def test_a_stop_waits_for_requests_in_flight_and_sends_no_new_ones(generate, tmp_path):
    """The first problem's error arrives while three other requests are in flight: those are paid for, so their answers are stored."""
    sent_indices = []

    class Slow(Scripted):
        async def generate(self, request, n, first_slot, account=NO_ACCOUNT):
            sent_indices.append(request.problem.sample_index)
            if request.problem.sample_index == 0:
                await asyncio.sleep(0.05)
                raise FcotError("quota used up")
            await asyncio.sleep(0.3)
            return Reply([Choice(" 1", "stop")] * n)

    with pytest.raises(FcotError, match=r"^quota used up$"):
        generate(Slow(None, concurrency=4), 1, problems(20))
    assert len(sent_indices) == 4
    assert {row["sample_index"] for row in rows_of(tmp_path)} == {*sent_indices} - {0}


def test_no_problems_need_no_request(generate):
    teacher = CountingOracle()
    assert generate(teacher, 4, [])[0] == []
    assert teacher.calls == []


def test_the_tokens_of_a_request_are_shared_by_the_choices_that_were_returned():
    first_row = {"request": "a", "n": 4, "prompt_tokens": 10, "completion_tokens": 80}
    rows = [(first_row, True), ({"request": "a", "n": 4}, True), ({"request": "a", "n": 4}, False), ({"request": "b", "n": 1}, False)]
    assert used_tokens(rows) == [{"prompt_tokens": 10, "completion_tokens": 80 * (2 / 3)}], "three of four were returned"
    assert used_tokens([({"request": "b", "n": 1}, True)]) == [None]
