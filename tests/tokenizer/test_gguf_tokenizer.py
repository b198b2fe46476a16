"""Tokenizers from GGUF metadata: the right cut before BPE, special tokens, SentencePiece, and what is refused."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings

from parhelion.errors import CheckpointError, InvalidRequestError
from parhelion.models.pretokenizers import find_pre_tokenizer
from parhelion.models.tokenizer import Tokenizer, load_tokenizer
from tests.checkpoints.tiny import finish, gguf_writer
from tests.gguf_read_once import gguf_read_once
from tests.tokenizer.tiny import text_within_planes, write_byte_level, write_sentence_piece

TEXTS = [
    "Hello, world!",
    "I'm sure they'll say it's what we've asked for.",
    "x = 1 and y = 22; 3.14159, 1,000,000 and 2024-01-31",
    "日本語の文章。中文也可以。한국어도요.",
    "🎉 👩‍👩‍👧 🇫🇷 é é ﬁ",
    "def f(x: int) -> int:\n    if x:\n\t\treturn x**2  # squared\n\n\n    return 0\n",
    "   leading, trailing   \n\n  ",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "ÀÉÎ \u200b\u00a0 \r\n mixed\tTABS",
]


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(token_id) for token_id in tokenizer.encode(text)]


def test_digits_after_several_spaces_are_split_one_by_one_before_bpe(smollm2: Tokenizer):
    # "a  12345  x": each digit is cut off first, so the two spaces before "1" stay one piece, and GPT-2's rule gives
    # the last space before a word to the word.
    assert pieces(smollm2, "a  12345  x") == ["a", "  ", "1", "2", "3", "4", "5", " ", " x"]
    assert smollm2.encode("a  12345  x") == [81, 256, 33, 34, 35, 36, 37, 216, 1792]
    assert pieces(smollm2, "a   7") == ["a", "   ", "7"]
    assert pieces(smollm2, "x 10") == ["x", " ", "1", "0"]
    # Fractions and the like are digits too (Unicode category N), where GPT-2's rule would join them to the space.
    assert pieces(smollm2, "x ½") == ["x", " ", "½"]


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_texts_come_back(smollm2: Tokenizer, text: str):
    ids = smollm2.encode(text)
    assert smollm2.decode(ids, skip_special_tokens=False) == text
    assert b"".join(smollm2.token_bytes(token_id) for token_id in ids) == text.encode()


def test_ids_equal_those_of_transformers_where_it_is_right(smollm2: Tokenizer, smollm2_path: Path):
    from transformers import AutoTokenizer

    with gguf_read_once():
        theirs = AutoTokenizer.from_pretrained(str(smollm2_path.parent), gguf_file=smollm2_path.name)
    for text in TEXTS:
        assert smollm2.encode(text) == theirs(text)["input_ids"], text
    # The trap that the other tests pin down: without it this project would use transformers' own.
    assert smollm2.encode("a  12345") != theirs("a  12345")["input_ids"]


def test_special_tokens_of_smollm2(smollm2: Tokenizer):
    assert smollm2.encode("<|im_start|>a<|im_end|>") == [1, 81, 2]
    assert smollm2.decode([1, 81, 2]) == "a"
    assert smollm2.decode([1, 81, 2], skip_special_tokens=False) == "<|im_start|>a<|im_end|>"
    assert smollm2.token_text(1) == "<|im_start|>"
    assert smollm2.special_ids == frozenset(range(17))
    assert (smollm2.vocab_size, smollm2.bos_token_id, smollm2.eos_token_ids) == (49152, 1, (2,))
    assert smollm2.encode("a", add_special_tokens=True) == smollm2.encode("a", add_special_tokens=False) == [81]


def test_strange_input_is_harmless(smollm2: Tokenizer):
    assert smollm2.encode("") == []
    assert smollm2.decode([]) == ""
    assert smollm2.decode([10**6, 81]) == "a"
    assert smollm2.token_bytes(10**6) == b""
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        smollm2.encode("a\ud800")
    with pytest.raises(InvalidRequestError, match="token ids must lie in"):
        smollm2.decode([-1])


@settings(max_examples=100, deadline=None)
@given(text_within_planes())
def test_any_text_comes_back(smollm2: Tokenizer, text: str):
    assert smollm2.decode(smollm2.encode(text), skip_special_tokens=False) == text


def test_threads_may_encode_at_once(smollm2: Tokenizer):
    expected = [smollm2.encode(text) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert list(pool.map(smollm2.encode, TEXTS)) == expected


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_other_threads_run_while_one_works_on_a_long_text(smollm2: Tokenizer, direction: str):
    text = "How vexingly quick daft zebras jump! " * 20_000
    ids = smollm2.encode(text)
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert smollm2.encode(text) == ids if direction == "encode" else smollm2.decode(ids) == text
        ended.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)  # who holds the interpreter gives it away of its own accord or not at all
    try:
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            begun.wait()
            assert not ended.is_set()
            working.result()
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    ("name", "text", "cut"),
    [
        ("gpt-2", "I'll  see 1234 x's!!", ["I", "'ll", " ", " see", " 1234", " x", "'s", "!!"]),
        ("smollm", "x  12", ["x", "  ", "1", "2"]),
        ("llama-bpe", "I'LL  see 12345!\n\nok", ["I", "'LL", " ", " see", " ", "123", "45", "!\n\n", "ok"]),
        ("llama-bpe", "(foo) a\t\tb", ["(foo", ")", " a", "\t", "\tb"]),
        ("qwen2", "x 123 y\n", ["x", " ", "1", "2", "3", " y", "\n"]),
        ("tekken", "helloWorld XML 42", ["hello", "World", " XML", " ", "4", "2"]),
    ],
)
def test_each_family_cuts_as_its_rule_says(name: str, text: str, cut: list[str]):
    rules = find_pre_tokenizer(name)
    assert rules is not None
    found = [text[start:end] for _, (start, end) in rules.build().pre_tokenize_str(text)]
    assert found == cut


def test_qwen2_composes_unicode_and_the_others_do_not():
    qwen2, llama = find_pre_tokenizer("qwen2"), find_pre_tokenizer("llama-bpe")
    assert qwen2 is not None
    assert llama is not None
    normalizer = qwen2.build_normalizer()
    assert normalizer is not None
    assert normalizer.normalize_str("e\u0301") == "é"
    assert llama.build_normalizer() is None


def test_whole_words_of_llama_skip_the_merges(tmp_path: Path):
    # "abc" can be merged only as ab + c; with ("b c") first in rank BPE alone would get a + bc.
    merges = ["b c", "a b", "ab c"]
    plain = load_tokenizer(write_byte_level(tmp_path / "plain.gguf", merges=merges))
    whole = load_tokenizer(write_byte_level(tmp_path / "whole.gguf", merges=merges, pre="llama-bpe", add_bos=False))
    assert pieces(plain, "abc") == ["a", "bc"]
    assert pieces(whole, "abc") == ["abc"]


@pytest.mark.parametrize(
    ("pre", "add_bos", "add_eos", "framed"),
    [
        ("gpt-2", None, None, "a"),
        ("gpt-2", True, None, "<|end|>a"),
        ("gpt-2", True, True, "<|end|>a<|end|>"),
        ("llama-bpe", None, None, "<|end|>a"),
        ("llama-bpe", False, True, "a<|end|>"),
    ],
)
def test_begin_and_end_tokens_are_added_as_the_file_says(
    tmp_path: Path, pre: str, add_bos: bool | None, add_eos: bool | None, framed: str
):
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "t.gguf", pre=pre, add_bos=add_bos, add_eos=add_eos))
    assert tokenizer.decode(tokenizer.encode("a"), skip_special_tokens=False) == framed
    assert tokenizer.decode(tokenizer.encode("a", add_special_tokens=False), skip_special_tokens=False) == "a"


def test_user_defined_tokens_are_whole_but_not_special(tmp_path: Path):
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "t.gguf", user_defined=["<think>"]))
    assert tokenizer.encode("<think>") == [1]
    assert tokenizer.decode([1]) == "<think>"
    assert tokenizer.special_ids == {0}


def test_an_unknown_pre_tokenizer_names_the_way_out(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"'new-rules'.*smollm.*--tokenizer"):
        load_tokenizer(write_byte_level(tmp_path / "t.gguf", pre="new-rules"))


def test_a_file_without_the_key_follows_gpt2(tmp_path: Path):
    tokenizer = load_tokenizer(write_byte_level(tmp_path / "t.gguf", pre=None, merges=["1 2"]))
    assert pieces(tokenizer, "12") == ["12"]


def test_damaged_vocabularies_are_refused(tmp_path: Path):
    writer = gguf_writer(tmp_path / "none.gguf")
    finish(writer)
    with pytest.raises(CheckpointError, match="holds no vocabulary"):
        load_tokenizer(tmp_path / "none.gguf")

    writer = gguf_writer(tmp_path / "other.gguf")
    writer.add_tokenizer_model("bert")
    writer.add_token_list(["a"])
    finish(writer)
    with pytest.raises(CheckpointError, match="model 'bert'; supported are 'gpt2' and 'llama'"):
        load_tokenizer(tmp_path / "other.gguf")

    with pytest.raises(CheckpointError, match="merges do not fit"):
        load_tokenizer(write_byte_level(tmp_path / "merges.gguf", merges=["zz q"]))
    with pytest.raises(CheckpointError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nowhere.gguf")


WORDS = [("▁", -9.0), ("h", -9.0), ("e", -9.0), ("l", -9.0), ("o", -9.0)]
PIECES = [*WORDS, ("he", -2.0), ("ll", -3.0), ("llo", -4.0), ("hello", -5.0), ("▁hello", -1.0), ("lo", -6.0)]


def test_sentence_piece_merges_the_best_scores_first(tmp_path: Path):
    tokenizer = load_tokenizer(write_sentence_piece(tmp_path / "t.gguf", PIECES))
    assert pieces(tokenizer, "hello") == ["<s>", " hello"]
    assert pieces(tokenizer, "hello hello") == ["<s>", " hello", " hello"]
    # "ll" has a better score than "lo", so "llo" is made of ll + o.
    assert pieces(tokenizer, "llo") == ["<s>", " ", "llo"]
    assert tokenizer.decode(tokenizer.encode("hello hello")) == "hello hello"
    assert tokenizer.eos_token_ids == (2,)


def test_sentence_piece_writes_what_is_in_no_piece_as_bytes(tmp_path: Path):
    tokenizer = load_tokenizer(write_sentence_piece(tmp_path / "t.gguf", PIECES))
    ids = tokenizer.encode("é🎉", add_special_tokens=False)
    assert b"".join(tokenizer.token_bytes(token_id) for token_id in ids) == " é🎉".encode()
    assert tokenizer.decode(ids) == "é🎉"
    assert tokenizer.token_text(ids[-1]) == "\ufffd"
