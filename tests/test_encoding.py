"""A special token's name within a text is encoded as ordinary text, for every tokenizer family."""

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
    fast_tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=TURN_TOKENS, **special)
    fast_tokenizer.chat_template = CHAT
    return fast_tokenizer


def byte_bpe() -> Any:
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": TURN_TOKENS})
    tokenizer.chat_template = CHAT
    return tokenizer


def gpt2() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[end], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainer)
    return fast(tokenizer, eos_token=end, unk_token=end, bos_token=end, pad_token=end)


def unigram() -> Any:
    """Like T5's tokenizer: texts are normalized, and special tokens are ordinary pieces too."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        [text.replace("<", "") for text in TEXTS], trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    )
    return fast(tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def sentencepiece_bpe() -> Any:
    """Like Llama's tokenizer: pieces with a space mark, and bytes for unknown pieces."""
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
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    return tokenizer


FAMILIES = {make.__name__: make for make in (byte_bpe, gpt2, unigram, sentencepiece_bpe, wordpiece, wordlevel, python_bytes)}


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


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of special tokens, without the unknown token (unless it is the end token too): it only marks missing characters."""
    ids = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    return ids - ({tokenizer.unk_token_id} if tokenizer.unk_token_id != tokenizer.eos_token_id else set())


@pytest.mark.parametrize("name", [*FAMILIES, *REAL])
def test_no_text_is_encoded_with_special_tokens(name):
    tokenizer = tokenizer_of(name)
    forbidden, names = special_ids(tokenizer), specials(tokenizer)
    encoder = encoder_of(tokenizer)
    wide = [special.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)}) for special in names[:5]]
    words = st.lists(st.one_of(st.sampled_from([*names, *wide, " ", "a", "12", "<", "/s>", "\n"]), st.text(max_size=5)), max_size=6).map(
        "".join
    )

    def holds(text: str) -> None:
        (ids,) = encoder.texts([text])
        assert forbidden.isdisjoint(ids)
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}, {"role": "user", "content": "a"}]
        plain = [{"role": turn["role"], "content": "a"} for turn in turns]
        (ids_of_text,), (ids_of_plain,) = encoder.turns([turns]), encoder.turns([plain])
        assert [number for number in ids_of_text if number in forbidden] == [number for number in ids_of_plain if number in forbidden]

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
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            assert encoder_of(tokenizer).turns([turns]) == [tokenizer(prompt, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("name", ["byte_bpe", "gpt2", "python_bytes", *REAL])
def test_decoding_gives_the_encoded_text(name):
    tokenizer = tokenizer_of(name)
    for special in specials(tokenizer)[:8]:
        text = f"before {special} behind"
        assert encoder_of(tokenizer).representable(text)
        assert tokenizer.decode(encoder_of(tokenizer).texts([text])[0], skip_special_tokens=True) == text


def test_a_text_that_the_vocabulary_cannot_encode_is_not_representable():
    assert not encoder_of(tokenizer_of("unigram")).representable("ends with </s> here")
    assert encoder_of(tokenizer_of("unigram")).representable("apples")
    assert not encoder_of(tokenizer_of("wordlevel")).representable("ends with </s> here")
    assert encoder_of(tokenizer_of("sentencepiece_bpe")).representable("ends with </s> here")


@pytest.mark.parametrize("name", [*FAMILIES, *REAL])
@pytest.mark.parametrize("chat", [False, True])
def test_only_the_last_token_of_a_sample_is_an_end_token(name, chat):
    tokenizer = tokenizer_of(name)
    student = Student(None, tokenizer, "decoder", chat)  # type: ignore[arg-type]
    form = METHODS["fine_tune_cot"].formats["chat" if chat else "decoder"]
    text = f"It says {tokenizer.eos_token} and {specials(tokenizer)[-1]}."
    rows = tokenize(student, form, [(text, form.completion("7", text))], max_prompt=200, max_completion=200)
    assert rows[0].completion[-1] == tokenizer.eos_token_id
    assert special_ids(tokenizer).isdisjoint(rows[0].completion[:-1])
    plain = encode_prompts(student, [form.prompt("It says.")], 200)[0][0]
    forbidden = special_ids(tokenizer)
    assert [number for number in rows[0].prompt if number in forbidden] == [number for number in plain if number in forbidden]


def test_curation_uses_the_tokenizer_of_the_runs_student(tmp_path):
    from types import SimpleNamespace

    from fcot.runs.vocabulary import writable
    from fcot.student.config import PretrainedStudentConfig

    tokenizer_of("unigram").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    check = writable(SimpleNamespace(student=PretrainedStudentConfig("mine", path=str(tmp_path))))
    assert check("apples")
    assert check("a < b")
    assert not check("it ends </s> here")
