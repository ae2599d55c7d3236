"""Data are never control: a special token's name within a text is ordinary text, for every tokenizer family."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from fcot.decoding.encoding import encoder_of
from fcot.methods.table import METHODS
from fcot.student.loading import Student, train_tokenizer
from fcot.student.tokenization import encode_prompts, tokenize

MODELS = Path(os.environ.get("FCOT_TEST_MODELS", "~/models")).expanduser()
REAL = ["gemma3_270m", "qwen_coder_0_5b"]
TEXTS = ["How many apples are left of 12? 12 - 5 = 7 </s> --> 7", "Ends with </s> </s> <pad> <unk> [SEP] <|im_end|>", "x < 5 > 3 / s"] * 20
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURN_TOKENS = ["<|im_start|>", "<|im_end|>"]


def fast(tokenizer: Tokenizer, **special: str) -> Any:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=TURN_TOKENS, **special)
    made.chat_template = CHAT
    return made


def byte_bpe() -> Any:
    made = train_tokenizer(TEXTS, 400)
    made.add_special_tokens({"additional_special_tokens": TURN_TOKENS})
    made.chat_template = CHAT
    return made


def gpt2() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[end], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainer)
    return fast(tokenizer, eos_token=end, unk_token=end, bos_token=end, pad_token=end)


def unigram() -> Any:
    """As T5's: normalized, and special tokens are pieces that a text can be cut into."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        [text.replace("<", "") for text in TEXTS], trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    )
    return fast(tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def sentencepiece_bpe() -> Any:
    """As Llama's: pieces with a space mark, and bytes for what is no piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.Metaspace(),
        decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]),
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    data = tokenizer.to_str()
    import json

    data = json.loads(data)
    data["added_tokens"] = data["added_tokens"][:3]
    return fast(Tokenizer.from_str(json.dumps(data)), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


def wordpiece() -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    special = ["[UNK]", "[PAD]", "[SEP]", "[CLS]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    return fast(tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]", cls_token="[CLS]", sep_token="[SEP]")


def wordlevel() -> Any:
    """Whole words are pieces, and ``</s>`` is a word."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>", "</s>"]))
    return fast(tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def python_bytes() -> Any:
    made = ByT5Tokenizer()
    made.chat_template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    return made


FAMILIES = {one.__name__: one for one in (byte_bpe, gpt2, unigram, sentencepiece_bpe, wordpiece, wordlevel, python_bytes)}


@cache
def tokenizer_of(name: str) -> Any:
    if name in FAMILIES:
        return FAMILIES[name]()
    if not (MODELS / name).is_dir():
        pytest.skip(f"{MODELS / name}: no such folder (FCOT_TEST_MODELS names another place)")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    tokenizer.chat_template = tokenizer.chat_template or CHAT  # a base model has none
    return tokenizer


def specials(tokenizer: Any) -> list[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))[:60]


def forbidden(tokenizer: Any) -> set[int]:
    """Ids of special tokens; the unknown token, unless it has another use, only says that a character is not in the vocabulary."""
    ids = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    return ids - ({tokenizer.unk_token_id} if tokenizer.unk_token_id != tokenizer.eos_token_id else set())


@pytest.mark.parametrize("name", [*FAMILIES, *REAL])
def test_whatever_stands_in_a_text_no_special_token_appears(name):
    tokenizer = tokenizer_of(name)
    bad, names = forbidden(tokenizer), specials(tokenizer)
    encoder = encoder_of(tokenizer)
    wide = [one.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)}) for one in names[:5]]
    words = st.lists(st.one_of(st.sampled_from([*names, *wide, " ", "a", "12", "<", "/s>", "\n"]), st.text(max_size=5)), max_size=6).map(
        "".join
    )

    def holds(text: str) -> None:
        (ids,) = encoder.texts([text])
        assert bad.isdisjoint(ids)
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}, {"role": "user", "content": "a"}]
        plain = [{"role": turn["role"], "content": "a"} for turn in turns]
        (asked,), (bare,) = encoder.turns([turns]), encoder.turns([plain])
        assert [number for number in asked if number in bad] == [number for number in bare if number in bad]

    options = {"max_examples": 60, "deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
    settings(**options)(given(words)(holds))()


@pytest.mark.parametrize("name", [*FAMILIES, *REAL])
def test_ordinary_texts_have_the_tokenizers_own_ids(name):
    tokenizer = tokenizer_of(name)
    texts = ["How many apples?", "x < 5 and [y] > 3 | 4", "", "  two  spaces\nand a line", "3 + 4 = 7 --> 7"]
    assert encoder_of(tokenizer).texts(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]
    for text in texts[:2]:
        assert encoder_of(tokenizer).prompt(text) == tokenizer(text)["input_ids"]
        turns = [{"role": "user", "content": text}]
        if tokenizer.chat_template:
            written = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            assert encoder_of(tokenizer).turns([turns]) == [tokenizer(written, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("name", ["byte_bpe", "gpt2", "python_bytes", *REAL])
def test_what_is_encoded_can_be_read_again(name):
    tokenizer = tokenizer_of(name)
    for special in specials(tokenizer)[:8]:
        text = f"before {special} behind"
        assert encoder_of(tokenizer).representable(text)
        assert tokenizer.decode(encoder_of(tokenizer).texts([text])[0], skip_special_tokens=True) == text


def test_a_vocabulary_that_cannot_write_a_name_says_so():
    assert not encoder_of(tokenizer_of("unigram")).representable("ends with </s> here")
    assert encoder_of(tokenizer_of("unigram")).representable("apples")
    assert not encoder_of(tokenizer_of("wordlevel")).representable("ends with </s> here")
    assert encoder_of(tokenizer_of("sentencepiece_bpe")).representable("ends with </s> here")


@pytest.mark.parametrize("name", [*FAMILIES, *REAL])
@pytest.mark.parametrize("chat", [False, True])
def test_only_the_real_end_ends_a_sample(name, chat):
    tokenizer = tokenizer_of(name)
    student = Student(None, tokenizer, "decoder", chat)  # type: ignore[arg-type]
    form = METHODS["fine_tune_cot"].formats["chat" if chat else "decoder"]
    text = f"It says {tokenizer.eos_token} and {specials(tokenizer)[-1]}."
    rows = tokenize(student, form, [(text, form.completion("7", text))], max_prompt=200, max_completion=200)
    assert rows[0].completion[-1] == tokenizer.eos_token_id
    assert forbidden(tokenizer).isdisjoint(rows[0].completion[:-1])
    plain = encode_prompts(student, [form.prompt("It says.")], 200)[0][0]
    bad = forbidden(tokenizer)
    assert [number for number in rows[0].prompt if number in bad] == [number for number in plain if number in bad]


def test_a_runs_curation_asks_its_students_tokenizer(tmp_path):
    from types import SimpleNamespace

    from fcot.runs.vocabulary import writable
    from fcot.student.config import PretrainedStudentConfig

    tokenizer_of("unigram").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    check = writable(SimpleNamespace(student=PretrainedStudentConfig("mine", path=str(tmp_path))))
    assert check("apples")
    assert check("a < b")
    assert not check("it ends </s> here")
