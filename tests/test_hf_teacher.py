"""A local transformers model as the teacher: exact sampling, batching that changes no answer, and errors."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from students import save_gpt2, save_t5
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GPT2LMHeadModel

from fcot.base.errors import FcotError
from fcot.base.files import folder_fingerprint
from fcot.llm.hf import HFModel, default_id
from fcot.llm.requests import Choice, Request, Usage

PROMPTS = [
    "Zoe has 3 apples.",
    "Take the last letters of the words in Amir Nora and concatenate them. ###",
    "Why?",
    "Greg takes 5 marbles away",
]
KINDS = ("t5", "gpt2")


def load(folder):
    kind = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders by kind, with weights so large that the next token depends on the tokens before it."""
    root = tmp_path_factory.mktemp("models")
    for kind, save in (("t5", save_t5), ("gpt2", save_gpt2)):
        folder = save(root / kind)
        model = load(folder)
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.3)
        model.save_pretrained(folder)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(params=KINDS)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def batches(monkeypatch):
    """Rows of each forward pass of GPT-2."""
    sizes, original = [], GPT2LMHeadModel.forward

    def forward(self, **options):
        sizes.append(len(options["input_ids"]))
        return original(self, **options)

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    return sizes


def teacher(folder, temperature=0.0, batch_size=4, chat=False, model_id="m"):
    return HFModel(str(folder), None, model_id, chat, temperature, batch_size, 8, "float32")


def send(teacher, *calls):
    """Replies to (request, n, seed) calls made at the same time."""

    async def run():
        try:
            return await asyncio.gather(*(teacher.generate(*call) for call in calls))
        finally:
            await teacher.close()

    return asyncio.run(run())


def texts(reply):
    return [choice.text for choice in reply.choices]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_texts_depend_neither_on_the_batch_size_nor_on_the_neighbors(folder, temperature):
    calls = [(Request(prompt, 20), n, 10 * n) for prompt, n in zip(PROMPTS, (1, 3, 2, 5), strict=True)]
    alone = [texts(send(teacher(folder, temperature, 1), call)[0]) for call in calls]
    assert len({text for group in alone for text in group}) == (4 if temperature == 0 else 11)
    for batch_size in (1, 3, 16):
        together = teacher(folder, temperature, batch_size)
        assert [texts(reply) for reply in send(together, *calls)] == alone
        assert [texts(reply) for reply in send(together, *reversed(calls))] == alone[::-1]  # a second loop, the same model


def test_seeds_and_prompts_draw_different_texts(folder):
    replies = send(teacher(folder, 0.7), *((Request(prompt, 20), 1, seed) for prompt in PROMPTS[:2] for seed in range(5)))
    assert len({text for reply in replies for text in texts(reply)}) == 10


def test_choices_of_one_request_are_those_of_single_requests_with_consecutive_seeds(folder):
    request = Request(PROMPTS[0], 20)
    many, *single = send(teacher(folder, 0.7), (request, 5, 7), *((request, 1, 7 + index) for index in range(5)))
    assert texts(many) == [texts(reply)[0] for reply in single]


def test_greedy_texts_equal_transformers_generate_without_the_folders_generation_config(folder, tmp_path):
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)[0]
        expected.append(tokenizer.decode(output[1 if model.config.is_encoder_decoder else ids.shape[1] :], skip_special_tokens=True))
    configured = shutil.copytree(folder, tmp_path / "spoilt")
    generation_config = json.loads((configured / "generation_config.json").read_text())
    generation_config |= {
        "num_beams": 3,
        "repetition_penalty": 9.0,
        "do_sample": True,
        "temperature": 5.0,
        "top_k": 3,
        "no_repeat_ngram_size": 1,
    }
    (configured / "generation_config.json").write_text(json.dumps(generation_config))
    for path in (folder, configured):
        assert [texts(reply)[0] for reply in send(teacher(path), *((Request(prompt, 20), 1, 0) for prompt in PROMPTS))] == expected


def test_the_first_token_is_drawn_from_the_softmax(folder):
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    start = {"decoder_input_ids": torch.tensor([[tokenizer.pad_token_id]])} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        probabilities = torch.softmax(model(ids, **start).logits[0, -1].double() / 0.7, -1).tolist()
    probability_of = Counter()
    for token, probability in enumerate(probabilities):
        probability_of[tokenizer.decode([token], skip_special_tokens=True)] += probability
    n = 1000
    counts = Counter(texts(send(teacher(folder, 0.7, 250), (Request(PROMPTS[0], 1), n, 0))[0]))
    common = [text for text, probability in probability_of.items() if probability * n >= 8]
    assert len(common) >= 6
    observed, expected = [counts[text] for text in common], [probability_of[text] * n for text in common]
    assert chisquare([*observed, n - sum(observed)], [*expected, n - sum(expected)]).pvalue > 0.01


def test_texts_end_at_the_length_limit_or_at_any_end_token_of_the_model(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cut = send(teacher(folder, 0.7), (Request(PROMPTS[0], 6), 2, 0))[0]
    assert [choice.finish_reason for choice in cut.choices] == ["length"] * 2
    assert cut.usage == Usage(len(tokenizer(PROMPTS[0]).input_ids), 12)
    with_ends = shutil.copytree(folder, tmp_path / "ends")
    generation_config = json.loads((with_ends / "generation_config.json").read_text())
    generation_config["eos_token_id"] = [index for index in range(len(tokenizer)) if index % 3 == 0]  # chat models also have several
    (with_ends / "generation_config.json").write_text(json.dumps(generation_config))
    calls = [(Request(PROMPTS[0], 100), n, seed) for n, seed in ((8, 0), *((1, i) for i in range(8)))]
    together, *ended = send(teacher(with_ends, 0.7), *calls)
    assert {choice.finish_reason for choice in together.choices} == {"stop"}
    assert together.choices == [reply.choices[0] for reply in ended]
    seed = max(range(8), key=lambda index: ended[index].usage.completion_tokens)
    whole = send(teacher(folder, 0.7), (Request(PROMPTS[0], 100), 1, seed))[0]
    assert whole.choices[0].text.startswith(ended[seed].choices[0].text)
    n_tokens = ended[seed].usage.completion_tokens
    assert 1 < n_tokens < 100
    to_the_end = send(teacher(with_ends, 0.7), (Request(PROMPTS[0], n_tokens), 1, seed), (Request(PROMPTS[0], n_tokens - 1), 1, seed))
    assert [reply.choices[0].finish_reason for reply in to_the_end] == ["stop", "length"]  # the end token counts


def test_an_unloaded_model_is_freed_and_answers_as_before(folder):
    import gc
    import weakref

    model = teacher(folder, 0.7)
    call = Request(PROMPTS[0], 8), 2, 3
    before = texts(send(model, call)[0])
    weights = weakref.ref(model._model._model)
    model.unload()
    gc.collect()
    assert weights() is None
    assert texts(send(model, call)[0]) == before


def test_a_stop_string_ends_the_text_before_it(folder):
    request = Request(PROMPTS[1], 40)
    whole = send(teacher(folder, 0.7), (request, 4, 0))[0]
    stop = whole.choices[1].text[5:9]
    short = send(teacher(folder, 0.7), (Request(PROMPTS[1], 40, stop=("never written", stop)), 4, 0))[0]
    assert texts(short) == [text.partition(stop)[0] for text in texts(whole)]
    reasons = ["stop" if stop in choice.text else choice.finish_reason for choice in whole.choices]
    assert [choice.finish_reason for choice in short.choices] == reasons
    assert "length" in reasons
    n_whole, n_short = (reply.usage.completion_tokens for reply in (whole, short))
    assert n_whole - 40 < n_short < n_whole
    assert short.usage.prompt_tokens == whole.usage.prompt_tokens


def test_an_empty_text_is_refused(folder):
    first = texts(send(teacher(folder), (Request(PROMPTS[0], 8), 1, 0))[0])[0]
    assert send(teacher(folder), (Request(PROMPTS[0], 8, stop=(first[0],)), 1, 0))[0].choices == [Choice("", "stop", refused="empty")]


def test_the_models_positions_limit_prompt_and_answer(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["gpt2"])
    word = next(text for text in (" the", " of", " 1", " is") if len(tokenizer(text).input_ids) == 1)
    lengths = (1024, 1023, 1000, 10)
    replies = send(teacher(folders["gpt2"], 0.7), *((Request(word * length, 30), 2, 0) for length in lengths))
    assert list(replies[0].choices) == [Choice("", None, refused="too_long")]
    assert [reply.usage.completion_tokens for reply in replies] == [0, 2 * 1, 2 * 24, 2 * 30]
    assert {choice.finish_reason for reply in replies[1:] for choice in reply.choices} == {"length"}


def test_t5_has_no_length_limit(folders):
    assert send(teacher(folders["t5"]), (Request("1 " * 1500, 3), 1, 0))[0].usage.completion_tokens == 3


def test_messages_go_through_the_chat_template(folder, tmp_path):
    messages = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": "No."}, {"role": "user", "content": "So?"}]
    with pytest.raises(FcotError, match=r"teacher\.path=.*no chat template; set teacher\.endpoint=completions"):
        send(teacher(folder, chat=True), (Request(messages, 10), 1, 0))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    chatty = shutil.copytree(folder, tmp_path / "chatty")
    tokenizer.save_pretrained(chatty)
    ids = tokenizer("user: Zoe has 3 apples.\nassistant: No.\nuser: So?\nA:", add_special_tokens=False, return_tensors="pt").input_ids
    model = load(folder)
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)[0]
    expected = tokenizer.decode(output[1 if model.config.is_encoder_decoder else ids.shape[1] :], skip_special_tokens=True)
    reply = send(teacher(chatty, chat=True), (Request(messages, 10), 1, 0))[0]
    assert texts(reply) == [expected]
    assert reply.usage == Usage(ids.shape[1], 10)


def test_a_continuation_keeps_the_space_that_sentencepiece_drops(folders, tmp_path):
    mixed = shutil.copytree(folders["gpt2"], tmp_path / "mixed", ignore=lambda _, names: [name for name in names if "token" in name])
    AutoTokenizer.from_pretrained(folders["t5"]).save_pretrained(mixed)
    model = load(mixed)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(mixed)))
    model.save_pretrained(mixed)
    written = texts(send(teacher(mixed, 1.0), (Request("Zoe has", 5), 30, 0))[0])
    assert 3 < sum(text.startswith(" ") for text in written) < 30


def test_calls_share_batches_and_large_requests_are_split(folders, batches):
    local = teacher(folders["gpt2"], 0.7, 4)
    assert local.concurrency == 8
    send(local, *((Request(prompt, 5), 1, 0) for prompt in PROMPTS), (Request(PROMPTS[0], 5), 6, 0), (Request(PROMPTS[0], 7), 1, 0))
    assert max(batches) == 4
    assert sum(batches) < 11 * 7 + 11, "finished rows leave the batch"


def test_later_rows_take_the_places_of_finished_rows(folders, batches):
    local = teacher(folders["gpt2"], 0.7, 4)
    send(local, (Request(PROMPTS[0], 40), 2, 0), *((Request(PROMPTS[1], 5), 1, seed) for seed in range(12)))
    assert len(batches) < 40 + 12, "short rows run beside the long rows, not after them"


@pytest.mark.parametrize("fits", [1, 3])
def test_a_batch_that_does_not_fit_is_halved(folders, monkeypatch, batches, fits):
    recorded = GPT2LMHeadModel.forward

    def forward(self, **options):
        if len(options["input_ids"]) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return recorded(self, **options)

    calls = [(Request(prompt, 5), 4, 0) for prompt in PROMPTS]
    expected = [texts(reply) for reply in send(teacher(folders["gpt2"], 0.7, 16), *calls)]
    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    local = teacher(folders["gpt2"], 0.7, 16)
    batches.clear()
    assert [texts(reply) for reply in send(local, *calls)] == expected
    assert max(batches) <= fits
    before = len(batches)
    send(local, *calls)  # the size that fits is remembered
    assert len(batches) - before <= 16 * 5 // max(1, fits - 1) + 16


def test_a_single_row_that_does_not_fit_into_memory_is_an_error(folders, monkeypatch):
    def forward(self, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    length = len(AutoTokenizer.from_pretrained(folders["gpt2"])(PROMPTS[0]).input_ids)
    with pytest.raises(FcotError, match=rf"does not fit into memory, a prompt of {length} tokens"):
        send(teacher(folders["gpt2"]), (Request(PROMPTS[0], 5), 3, 0))


def test_a_text_that_does_not_fit_into_memory_to_be_scored_is_an_error(folders, monkeypatch):
    def forward(self, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    request = Request(PROMPTS[0], 5, top_logprobs=3, scored=" one two three")
    with pytest.raises(
        FcotError, match=r"teacher.path=.*: no memory to score an answer of \d+ tokens after a prompt of \d+: .*teacher.dtype"
    ):
        send(teacher(folders["gpt2"]), (request, 1, 0))


def test_a_failure_reaches_all_callers_of_the_batch_but_no_later_caller(folders, monkeypatch):
    original, failures = GPT2LMHeadModel.forward, [RuntimeError("device-side assert")]

    def forward(self, **options):
        if failures:
            raise failures.pop()
        return original(self, **options)

    async def run():
        local = teacher(folders["gpt2"], batch_size=2)
        answers = await asyncio.gather(*(local.generate(Request(prompt, 5), 1, 0) for prompt in PROMPTS), return_exceptions=True)
        await local.close()
        return answers

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    answers = asyncio.run(run())
    assert [isinstance(answer, RuntimeError) for answer in answers] == [True, True, False, False]


def test_the_event_loop_stays_free_and_rows_of_a_cancelled_call_end(folders, monkeypatch):
    steps, original = [], GPT2LMHeadModel.forward

    async def run():
        loop, entered = asyncio.get_running_loop(), asyncio.Event()

        def forward(self, **options):
            steps.append(len(options["input_ids"]))
            if len(steps) == 3:
                loop.call_soon_threadsafe(entered.set)
            return original(self, **options)

        monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
        local = teacher(folders["gpt2"])
        call = asyncio.create_task(local.generate(Request("Why?", 1000), 4, 0))
        await entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await local.close()
        return await local.generate(Request("Why?", 5), 1, 0)  # the model still works

    assert asyncio.run(run()).usage.completion_tokens == 5
    assert len(steps) < 900


def test_the_default_model_id_depends_on_the_folders_content(folder, tmp_path):
    name = default_id(str(folder), None, tmp_path)
    assert name == f"{folder.name}-{folder_fingerprint(folder)[:12]}"
    changed = shutil.copytree(folder, tmp_path / folder.name)
    (changed / "model.safetensors").write_bytes(b"others")
    assert default_id(str(changed), None, tmp_path) != name
    assert default_id("google/flan-t5-xl", None, tmp_path) == "google/flan-t5-xl@main"
    assert default_id("google/flan-t5-xl", "v2", tmp_path) == "google/flan-t5-xl@v2"


def test_a_configured_dtype_is_in_the_identity_and_auto_has_older_identities():
    def build(*dtype):
        return HFModel("owner/name", None, "m", False, 0.7, 1, 1, *dtype)

    plain = {"model": "m", "temperature": 0.7}
    assert build().identity == plain
    assert build().older_identities == [plain | {"dtype": "bfloat16"}, plain | {"dtype": "float32"}]
    assert build("float16").identity == plain | {"dtype": "float16"}
    assert not build("float16").older_identities


def test_creating_a_local_teacher_does_not_import_torch():
    code = "import sys; from fcot.llm.hf import HFModel as H\n"
    code += "H('a/b', None, 'm', False, 0, 1, 1); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("spoil", ["all", "config.json", "model.safetensors", "tokens", "truncated"])
def test_a_folder_without_a_whole_model_is_named_in_the_error(folder, tmp_path, spoil):
    broken = tmp_path / "broken"
    if spoil == "all":
        broken.mkdir()
        (broken / "notes.txt").write_text("nothing")
    else:
        unwanted = {"tokens": "token"}.get(spoil, spoil)
        shutil.copytree(folder, broken, ignore=lambda _, names: [name for name in names if unwanted in name])
    if spoil == "truncated":
        (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(FcotError, match=rf"teacher\.path={broken}"):
        send(teacher(broken), (Request("Why?", 5), 1, 0))


@pytest.mark.parametrize(("source", "name"), [("/no/where", "path"), ("no/where", "model")])
def test_a_missing_folder_or_hub_model_is_named_with_its_option(source, name):
    with pytest.raises(FcotError, match=rf"teacher\.{name}={source}"):
        send(teacher(source), (Request("Why?", 5), 1, 0))
