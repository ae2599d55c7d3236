"""Prices, costs of requests, and budgets that no run exceeds, checked with a server that counts its tokens."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace

import pytest
import yaml
from fake_openai import FakeServer
from teachers import PROMPT, Scripted, plan, problems
from test_dry_run import make_run
from test_openai import send, step1, teacher

from fcot.base.errors import FcotError
from fcot.base.resources import PRICES
from fcot.llm.generate import generate_completions
from fcot.llm.meter import Meter, interrupted_message
from fcot.llm.money import FREE, Price, no_price_in, paid, read_price
from fcot.llm.requests import NO_ACCOUNT, Choice, Reply, Usage
from fcot.llm.store.folder import StoreFolder

PRICE = Price(2.0, 8.0, 0.5, batch=0.5)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# --- prices -------------------------------------------------------------------------------------------------------------------


def test_usd_by_hand():
    assert PRICE.usd(1_000_000, 0) == 2.0
    assert PRICE.usd(0, 1_000_000) == 8.0
    assert PRICE.usd(300, 200) == pytest.approx(300 * 2e-6 + 200 * 8e-6)
    assert PRICE.usd(300, 200, 100) == pytest.approx(200 * 2e-6 + 100 * 0.5e-6 + 200 * 8e-6)
    assert PRICE.usd(300, 200, 100, batch=True) == pytest.approx(PRICE.usd(300, 200, 100) / 2)
    assert PRICE.usd(0, 0) == FREE.usd(10**9, 10**9) == 0.0


def test_more_cached_tokens_than_prompt_tokens_do_not_earn_money():
    assert PRICE.usd(100, 0, 150) == pytest.approx(150 * 0.5e-6)


def test_every_entry_of_the_price_file_parses():
    models = list(yaml.safe_load(PRICES.read_text()))
    assert len(models) > 10
    for model in models:
        price = read_price(PRICES, model)
        assert price.input > 0, model
        assert price.output >= price.input >= price.cached_input > 0, model
        assert 0 < price.batch <= 1, model
    assert read_price(PRICES, "gpt-4.1-mini") == Price(0.4, 1.6, 0.1, 0.5)


def test_fine_tuned_models_have_their_bases_fine_tuned_price(tmp_path):
    nano = Price(0.2, 0.8, 0.05, training=1.5)
    for name in ("ft:gpt-4.1-nano-2025-04-14:org::id", "ft:gpt-4.1-nano-2025-04-14", "ft:gpt-4.1-nano:org:suffix:id"):
        assert read_price(PRICES, name) == nano
    assert read_price(PRICES, "gpt-4.1-nano-2025-04-14") == read_price(PRICES, "gpt-4.1-nano") == Price(0.1, 0.4, 0.025, 0.5)
    assert read_price(PRICES, "ft:o3:org::id") is None, "no price for training it"
    assert read_price(PRICES, "ft:gpt-4.1-nano-2031-01-01:org::id") is None, "another date may have another price"
    assert nano.training_usd(2_000_000) == 3.0
    assert PRICE.training_usd(1) is None
    path = tmp_path / "prices.yaml"
    for entry in (
        "{input: 1, output: 2}",
        "{training: 1, output: 2}",
        "{training: 1, input: 1, output: 2, more: 3}",
        "7",
        "{training: -1, input: 1, output: 2}",
    ):
        path.write_text(f"m: {{input: 1, output: 2, fine_tuned: {entry}}}")
        for name in ("ft:m:x", "m"):
            with pytest.raises(FcotError, match=r"student\.prices=.*fine_tuned: \{training: USD"):
                read_price(path, name, "student.prices")
    path.write_text("m: {input: 1, output: 2, training: 3}")
    with pytest.raises(FcotError, match="training"):
        read_price(path, "m")


def test_a_price_entry_has_defaults(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("a.b: {input: 3, output: 9}\nc: {input: 1, output: 2, cached_input: 0, batch: 0.25}\n")
    assert read_price(path, "a.b") == Price(3.0, 9.0, cached_input=3.0, batch=1.0)
    assert read_price(path, "c") == Price(1.0, 2.0, cached_input=0.0, batch=0.25)


@pytest.mark.parametrize("text", [
    "prices: {m: {input: 1, output: 2}}", "m: {input: 1, output: 2}\nothers: {n: {input: 1, output: 2}, k: {input: 1, output: 2}}",
])  # fmt: skip
def test_models_below_another_level_are_an_error_instead_of_unpriced(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    outer, inner = ("prices", "m") if text.startswith("prices") else ("others", "n, k")
    with pytest.raises(
        FcotError, match=rf"^student\.prices={path}: '{outer}' .* \({inner}\) instead of a price\. Write the models at the top"
    ):
        read_price(path, "m", "student.prices")
    path.write_text("m: {input: 1, output: 2}\nk: {fine_tuned: {training: 1, input: 1, output: 2}}")
    assert read_price(path, "m") == Price(1.0, 2.0, 1.0)


def test_a_service_tier_has_its_price_or_none(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("m: {input: 2, output: 8, tiers: {flex: 0.5, priority: 2}}")
    assert read_price(path, "m", tier="flex") == Price(1.0, 4.0, 1.0)
    assert read_price(path, "m", tier="priority") == Price(4.0, 16.0, 4.0)
    assert read_price(path, "m", tier="default") == read_price(path, "m") == Price(2.0, 8.0, 2.0)
    assert read_price(path, "m", tier="scale") is None
    path.write_text("m: {input: 2, output: 8, tiers: {flex: -1}}")
    with pytest.raises(FcotError, match="tiers"):
        read_price(path, "m")


def test_a_budget_needs_the_price_of_the_service_tier(tmp_path, make_run):
    (tmp_path / "prices.yaml").write_text("m: {input: 2, output: 8, tiers: {flex: 0.5}}")
    common = (
        "teacher=openai", "teacher.model=m", "teacher.base_url=http://127.0.0.1:9/v1", f"teacher.prices={tmp_path}/prices.yaml",
        "teacher.budget_usd=1",
    )  # fmt: skip
    assert make_run(tmp_path, *common, "++teacher.parameters={service_tier:flex}").plan.price.output == 4.0
    with pytest.raises(FcotError, match=r"prices.yaml has none for m with service_tier=priority \(tiers: \{priority: SHARE\}\)"):
        make_run(tmp_path, *common, "++teacher.parameters={service_tier:priority}")


@pytest.mark.parametrize("text", ["other: {input: 1, output: 2}", "", "model: {input: 1, output: 2}"])
def test_a_model_that_is_missing_in_the_file_has_no_price(tmp_path, text):
    (tmp_path / "prices.yaml").write_text(text)
    assert read_price(tmp_path / "prices.yaml", "m") is None


NO_NUMBER = "and not a number that is at least 0"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("m: {input: -1, output: 2}", f"the entry of 'm': input is -1, {NO_NUMBER}"),
        ("m: {input: 1, output: 2, batch: -0.5}", f"the entry of 'm': batch is -0.5, {NO_NUMBER}"),
        ("m: {input: 1, output: 2, tiers: {flex: cheap}}", f"the entry of 'm', tiers: flex is 'cheap', {NO_NUMBER}"),
        ("m: {input: 1, output: 2, tiers: [flex]}", "the entry of 'm', tiers: ['flex'] is not a mapping"),
        ("m: {input: 1, output: 2, currency: 3}", "the entry of 'm' has unknown fields: currency"),
        ("m: {prompt: 1, completion: 2}", "the entry of 'm' has unknown fields: completion, prompt"),
        ("m: {input: 1}", "the entry of 'm' has no output"),
        ("m: {output: 1}", "the entry of 'm' has no input"),
        ("m: {}", "the entry of 'm' has no input and no output"),
        ("m: {input: 0.5$, output: 2$}", f"the entry of 'm': input is '0.5$', {NO_NUMBER}"),
        ("m: {input: null, output: 2}", f"the entry of 'm': input is empty, {NO_NUMBER}"),
        ("m: [1, 2]", "the entry of 'm' is [1, 2], and not a mapping"),
        ("m: 3", "the entry of 'm' is 3, and not a mapping"),
        ("m:", "the entry of 'm' is empty, and not a mapping"),
        ("m: 0.5, 2.0", "the entry of 'm' is '0.5, 2.0', and not a mapping"),
        ("m: {input: ${x}, output: 2}", "line 1 is not valid YAML (expected ',' or '}', but got '{')"),
        ("m: {input: 1, output: 2", "line 1 is not valid YAML (expected ',' or '}', but got '<stream end>')"),
        ("m:\n  input: 1\n output: 2", "line 3 is not valid YAML (expected <block end>, but found '<block mapping start>')"),
        ("\tm: 1", "line 1 is not valid YAML (found character '\\t' that cannot start any token)"),
        ("model,input,output\nm,0.5,2", "the file is YAML without model names (is it CSV or a list?)"),
        ("- m", "the file is YAML without model names (is it CSV or a list?)"),
        ("3", "the file is YAML without model names (is it CSV or a list?)"),
        (b"m: {input: \xff\xfe, output: 2}", "the file is not UTF-8 text"),
        (b"m: \x00", "the file is not valid YAML (unacceptable character #x0000: special characters are not allowed)"),
        (None, "the file cannot be read (Is a directory)"),
    ],
)
def test_a_malformed_price_file_is_reported_in_a_sentence_with_file_and_entry(tmp_path, text, reason):
    path = tmp_path / "prices.yaml"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FcotError) as error:
        read_price(path, "m")
    assert str(error.value).startswith(f"teacher.prices={path}: {reason}. An entry is m: {{input: USD, output: USD, ")
    assert "Error" not in str(error.value)


def test_a_model_without_a_price_is_named_with_the_models_of_the_file(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("corp-thnk: {input: 0.5, output: 2}")
    assert no_price_in(path, "corp-think") == f"{path} has none for corp-think (it has corp-thnk)"
    path.write_text("".join(f"model-{letter}: {{input: 0.5, output: 2}}\n" for letter in "abcdefgh") + "corp-thnk: {input: 0.5, output: 2}")
    assert no_price_in(path, "corp-think") == f"{path} has none for corp-think (it has corp-thnk)"
    assert no_price_in(path, "else") == f"{path} has none for else"
    assert no_price_in(tmp_path / "nowhere.yaml", "m") == f"{tmp_path / 'nowhere.yaml'} has none for m"


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_a_price_must_be_finite(tmp_path, value):
    path = tmp_path / "prices.yaml"
    path.write_text(f"m: {{input: {value}, output: 2}}")
    with pytest.raises(FcotError, match=NO_NUMBER):
        read_price(path, "m")


def test_an_interrupted_purchase_says_what_is_stored_and_paid(tmp_path):
    meter = Meter(40, lambda _: None, done=12, paid_usd=0.25)
    priced = plan(Scripted(None), 4, price=PRICE, budget_usd=1.0)
    assert (
        interrupted_message(priced, meter)
        == "12 of 40 completions are complete and stored; $0.2500 of teacher.budget_usd=1 spent by this run"
    )
    assert "; $0.2500 spent by this run" in interrupted_message(replace(priced, budget_usd=None), meter)
    assert "what they cost is unknown" in interrupted_message(replace(priced, price=None), meter)


# --- payments -------------------------------------------------------------------------------------------------------------------


def test_paid_counts_each_request_once_by_its_first_row():
    rows = [
        {"request": "a", "prompt_tokens": 100, "completion_tokens": 20},
        {"request": "a"},
        {"request": "a"},
        {"request": "b", "prompt_tokens": 50, "completion_tokens": 10, "cached_tokens": 40},
        {"request": "c", "prompt_tokens": 1000, "completion_tokens": 300, "cached_tokens": None, "batch": "batch_1"},
        {"request": "d", "prompt_tokens": None, "completion_tokens": None},
        {"request": "e", "prompt_tokens": 7, "completion_tokens": None},
    ]
    usage = paid(iter(rows), PRICE)
    usd = usage.pop("usd")
    assert usage == {
        "requests": 5, "prompt_tokens": 1157, "completion_tokens": 330, "cached_tokens": 40, "requests_without_usage": 2,
        "requests_lost": 0,
    }  # fmt: skip
    assert usd == pytest.approx(PRICE.usd(100, 20) + PRICE.usd(50, 10, 40) + PRICE.usd(1000, 300, batch=True) + PRICE.usd(7, 0), abs=1e-6)
    assert paid(rows, None) == usage | {"usd": None}
    assert paid([], PRICE)["usd"] == paid(rows, FREE)["usd"] == 0.0


def test_a_run_reports_its_cost_and_a_second_run_of_the_same_requests_costs_nothing(tmp_path):
    with FakeServer(cached_tokens=True) as server:
        usage = buy(teacher(server, max_choices=4), tmp_path, None)
        stats = server.stats()
        assert usage["usd"] == pytest.approx(spent(stats), abs=1e-6)
        assert usage["usd"] > 0
        assert buy(teacher(server), tmp_path, None, run_id="two")["usd"] == 0.0
        assert buy(teacher(server), tmp_path, None, price=None)["usd"] is None


# --- the budget -----------------------------------------------------------------------------------------------------------------


def buy(model, tmp_path, budget_usd, run_id="run", price=PRICE, n=12, diversity=4, prompt=PROMPT):
    """Buy completions of ``n`` problems; returns the usage."""
    purchase = plan(model, diversity, prompt, run_id, price=price, budget_usd=budget_usd)
    return generate_completions(purchase, StoreFolder(tmp_path / "store"), problems(n)).usage()


def spent(stats):
    """USD that the server would charge."""
    return PRICE.usd(stats["prompt_tokens"], stats["completion_tokens"], stats["cached_tokens"])


def bound(model, n, prompt=PROMPT):
    """Maximum cost in USD of a first request with ``n`` choices."""
    return PRICE.usd(step1(model).most_prompt_tokens(), n * prompt.rationale_tokens)


WHOLE = 12 * 4  # completions of `buy`


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("max_choices", [1, 4])
def test_the_servers_charges_stay_below_the_budget_and_a_larger_budget_continues(tmp_path, concurrency, max_choices):
    with FakeServer(latency=0.003) as server:
        budget = 0.01
        bought = 0
        while True:
            try:
                buy(teacher(server, concurrency=concurrency, max_choices=max_choices), tmp_path, budget)
            except FcotError as error:
                message = str(error)
                assert message.startswith(f"teacher.budget_usd={budget:g}: $")
                assert "a larger budget continues" in message
                assert float(re.search(r"\$([\d.]+) spent", message)[1]) == pytest.approx(spent(server.stats()), abs=1e-4)
            else:
                break
            finally:
                stats = server.stats()
                assert spent(stats) <= budget
            assert bought < stats["good_choices"] < 2 * WHOLE, "the larger budget bought more"
            bought = stats["good_choices"]
            budget += 0.012
        assert bought > 0, "the first budget was too small"
        assert server.stats()["good_choices"] == 2 * WHOLE, "nothing was bought twice"
        assert buy(teacher(server), tmp_path, budget)["usd"] == pytest.approx(spent(server.stats()), abs=1e-6)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_budget_is_used_until_the_next_request_could_exceed_it(tmp_path, concurrency):
    with FakeServer(latency=0.01) as server:
        model = teacher(server, concurrency=concurrency)
        with pytest.raises(FcotError, match="budget"):
            buy(model, tmp_path, 0.03)
        assert 0.03 - 1.5 * bound(model, 1) < spent(server.stats()) <= 0.03


def test_a_budget_smaller_than_one_request_sends_nothing(tmp_path):
    with FakeServer() as server:
        model = teacher(server, max_choices=4)
        least = bound(model, 4)
        with pytest.raises(FcotError, match=r"\$0\.0000 spent, .* 0 of 48 completions") as error:
            buy(model, tmp_path, 0.999 * least)
        assert f"may cost ${least:,.4f}" in str(error.value)
        assert server.stats()["requests"] == 0
        assert not list((tmp_path / "store").glob("*.jsonl")) or not any(p.stat().st_size for p in (tmp_path / "store").glob("*.jsonl"))
        with pytest.raises(FcotError):
            buy(model, tmp_path, 1.001 * least)
        assert server.stats()["requests"] >= 1


def test_the_budget_counts_earlier_attempts_of_the_run_but_not_other_runs(tmp_path):
    with FakeServer() as server:
        with pytest.raises(FcotError, match="budget"):
            buy(teacher(server), tmp_path, 0.01)
        first = server.stats()
        with pytest.raises(FcotError, match="budget"):
            buy(teacher(server), tmp_path, 0.01)
        assert server.stats()["requests"] == first["requests"], "the same budget is used up"
        with pytest.raises(FcotError, match="budget"):
            buy(teacher(server), tmp_path, 0.01, run_id="another")
        both = server.stats()
        assert first["requests"] < both["requests"]
        assert spent(both) - spent(first) <= 0.01


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("max_choices", [1, 4])
def test_the_budget_holds_under_faults_including_requests_that_broke_off(tmp_path, monkeypatch, concurrency, max_choices):
    """A reset comes after the server has done its work, so it may charge for it. It also charges for answers without usage."""
    monkeypatch.setattr("fcot.llm.openai._LONGEST_WAIT_S", 0.0)
    faults = {"seed": 5, "no_usage": 0.15, "reset": 0.15, "500:0": 0.1, "fewer": 0.1, "empty": 0.05}
    with FakeServer(faults, latency=0.005) as server:
        with pytest.raises(FcotError, match="budget"):
            buy(teacher(server, concurrency=concurrency, max_choices=max_choices, max_retries=10), tmp_path, 0.04)
        stats = server.stats()
    assert {"no_usage", "reset"} <= set(stats["faulty"]), "without these faults the test proves nothing"
    assert spent(stats) + sum(most_of(request["body"]) for request in stats["last"] if request["fault"] in ("no_usage", "reset")) <= 0.04


def most_of(body):
    """Estimated cost of a request without reported usage: its words, and the usual length of such an answer."""
    return PRICE.usd(len(json.dumps(body["messages"]).split()), body["n"] * (40 if body["max_tokens"] > 40 else 1))


def test_retries_are_within_the_budget_before_they_are_sent(tmp_path, monkeypatch):
    # Up to max_retries retries are sent without another check of the budget.
    monkeypatch.setattr("fcot.llm.openai._LONGEST_WAIT_S", 0.0)
    prompt = replace(PROMPT, two_steps=False, rationale_tokens=40)
    with FakeServer([None] + ["reset"] * 8) as server:
        model = teacher(server, concurrency=1, max_retries=10)
        budget = 2 * bound(model, 1, prompt)
        with contextlib.suppress(FcotError):
            buy(model, tmp_path, budget, n=2, diversity=1, prompt=prompt)
        stats = server.stats()
    assert stats["faulty"]["reset"] > 0
    usd_per_answer = spent(stats) / stats["good_requests"]
    assert spent(stats) + stats["faulty"]["reset"] * usd_per_answer <= budget, "the server may charge for answers that it broke off"


def test_a_server_that_never_reports_usage_is_not_paid_beyond_the_budget(tmp_path):
    with FakeServer(["no_usage"] * 1000) as server:
        model = teacher(server, concurrency=4)
        with pytest.raises(FcotError, match="budget"):
            buy(model, tmp_path, 20.5 * bound(model, 1))
        stats = server.stats()
    assert 10 < stats["requests"] <= 60
    least = min(PRICE.usd(len(json.dumps(r["body"]["messages"])), r["body"]["max_tokens"]) for r in stats["last"])
    assert stats["requests"] * least <= 20.5 * bound(model, 1)


def test_the_budget_holds_over_several_attempts_of_a_run_without_reported_usage(tmp_path):
    def answer(request, n, first_slot):
        return Reply([Choice(f" {first_slot}", "stop")] * n, Usage())

    calls = 0
    for _ in range(4):
        model = Scripted(answer)
        with pytest.raises(FcotError, match="budget"):
            buy(model, tmp_path, 0.02, n=100)
        calls = calls or len(model.calls)
    rows = sum(len(shard.read_text().splitlines()) for shard in (tmp_path / "store").glob("*.jsonl"))
    assert rows == calls, "what the first attempt bought used up the budget"


class Breaking(Scripted):
    """Each request breaks off three times before it is answered."""

    n_lost = 0

    async def generate(self, request, n, first_slot, account=NO_ACCOUNT):
        for _ in range(3):
            self.n_lost += 1
            account.sending()
            account.maybe_charged()
        return await super().generate(request, n, first_slot)


def test_requests_that_broke_off_count_with_their_maximum_cost(tmp_path):
    model = Breaking(lambda request, n, first_slot: [f" {first_slot}"] * n, concurrency=1)
    with pytest.raises(FcotError, match="budget"):
        buy(model, tmp_path, 0.02, n=100)
    least = min(PRICE.usd(request.most_prompt_tokens(), n * request.max_tokens) for request, n, _ in model.calls)
    assert model.n_lost > 3
    assert model.n_lost * least <= 0.02


def test_the_budget_counts_requests_that_broke_off_in_earlier_attempts(tmp_path):
    def answer(request, n, first_slot):
        return [f" {first_slot}"] * n

    first, second = Breaking(answer), Breaking(answer)
    with pytest.raises(FcotError, match="budget"):
        buy(first, tmp_path, 0.02, n=100)
    with pytest.raises(FcotError, match="budget"):
        buy(second, tmp_path, 0.02, n=100)
    assert len(first.calls) > 0
    assert second.calls == []


def test_a_max_tokens_parameter_of_the_user_counts_in_the_budget_or_is_an_error(tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("fake: {input: 0, output: 8}")
    budget = 1e-4  # three answers of four tokens; the server's answers have about thirty
    with FakeServer() as server:
        with contextlib.suppress(FcotError):  # a fault of the configuration, or the budget is used up
            run = make_run(
                tmp_path, "teacher=openai", "teacher.model=fake", f"teacher.base_url={server.base_url}", f"teacher.prices={prices}",
                f"teacher.budget_usd={budget}", "prompt.rationale_tokens=4", "+teacher.parameters={max_tokens:400}",
                "teacher.max_choices_per_request=1", "teacher.concurrency=1",
            )  # fmt: skip
            generate_completions(run.plan, run.store, run.select(run.split.train))
        assert Price(0, 8, 0).usd(0, server.stats()["completion_tokens"]) <= budget


def test_a_price_without_a_budget_stops_nothing(tmp_path):
    with FakeServer() as server:
        assert buy(teacher(server), tmp_path, None)["usd"] > 0
        assert server.stats()["good_choices"] == 2 * WHOLE


def test_the_maximum_cost_of_a_request_is_at_least_what_the_server_charges():
    with FakeServer() as server:
        for chat in (True, False):
            model = teacher(server, chat=chat)
            reply = send(model)
            assert reply.usage.prompt_tokens <= step1(model).most_prompt_tokens()
            assert reply.usage.completion_tokens <= step1(model).max_tokens
