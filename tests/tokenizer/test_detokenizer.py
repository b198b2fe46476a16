"""Incremental text: equal to decoding everything at once, whole characters only, and never a stop string."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.engine.detokenizer import IncrementalDetokenizer
from parhelion.models.tokenizer import Tokenizer, load_tokenizer
from parhelion.types import SamplingParams
from tests.tokenizer.tiny import text_within_planes, write_sentence_piece

EMOJI = "🎉👩‍👩‍👧日本語é"


def run(
    tokenizer: Tokenizer, chunks: list[list[int]], params: SamplingParams
) -> tuple[IncrementalDetokenizer, list[str]]:
    """Feed the chunks, the last one as the end; returns the detokenizer and its text after each chunk."""
    detokenizer = IncrementalDetokenizer(tokenizer, [1], params)
    texts = []
    for number, chunk in enumerate(chunks, 1):
        stop = detokenizer.append(chunk, finished=number == len(chunks))
        texts.append(detokenizer.text)
        if stop is not None:
            break
    return detokenizer, texts


def singly(ids: list[int]) -> list[list[int]]:
    return [[token_id] for token_id in ids] or [[]]


def random_ids() -> st.SearchStrategy[list[int]]:
    # Low ids are special tokens and single bytes, which is where characters break.
    return st.lists(st.one_of(st.integers(0, 300), st.integers(0, 49200)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(ids=random_ids(), skip=st.booleans())
def test_the_text_equals_decoding_all_ids(smollm2: Tokenizer, ids: list[int], skip: bool):
    detokenizer, texts = run(smollm2, singly(ids), SamplingParams(skip_special_tokens=skip))
    assert detokenizer.text == smollm2.decode(ids, skip_special_tokens=skip)
    for earlier, later in pairwise(texts):
        assert later.startswith(earlier)


@settings(max_examples=100, deadline=None)
@given(text=text_within_planes(40).map(lambda text: text + EMOJI))
def test_no_character_is_ever_split(smollm2: Tokenizer, text: str):
    ids = smollm2.encode(text, add_special_tokens=False)
    _, texts = run(smollm2, singly(ids), SamplingParams(skip_special_tokens=False))
    assert texts[-1] == text
    assert all(text.startswith(shown) for shown in texts)


def test_an_unfinished_character_shows_only_at_the_end(smollm2: Tokenizer):
    first_bytes = smollm2.encode("🎉")[:-1]
    detokenizer = IncrementalDetokenizer(smollm2, [], SamplingParams())
    detokenizer.append(first_bytes, finished=False)
    assert detokenizer.text == ""
    detokenizer.append([], finished=True)
    assert detokenizer.text == "\ufffd" == smollm2.decode(first_bytes)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=30),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    include=st.booleans(),
    cuts=st.lists(st.integers(0, 30), max_size=4),
)
def test_the_stop_string_that_completes_first_ends_the_text_however_it_arrives(
    smollm2: Tokenizer, text: str, stops: list[str], include: bool, cuts: list[int]
):
    ids = smollm2.encode(text)
    edges = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    chunks = [ids[start:end] for start, end in pairwise(edges)] or [[]]
    params = SamplingParams(stop=stops, include_stop_str_in_output=include)
    detokenizer, texts = run(smollm2, chunks, params)

    ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert detokenizer.stop_string is None
        assert detokenizer.text == text
        return
    end, _, stop = min(ends)
    assert detokenizer.stop_string == stop
    assert detokenizer.text == text[: end if include else end - len(stop)]
    assert all(detokenizer.text.startswith(shown) for shown in texts)
    taken = smollm2.decode(ids[: detokenizer.num_tokens])
    assert stop in taken
    assert stop not in smollm2.decode(ids[: detokenizer.num_tokens - 1])


def test_what_may_become_a_stop_string_waits(smollm2: Tokenizer):
    detokenizer = IncrementalDetokenizer(smollm2, [], SamplingParams(stop=["END."]))
    shown = []
    for token in ["x", "E", "N", "x", "E", "N", "D", "!"]:
        detokenizer.append(smollm2.encode(token), finished=False)
        shown.append(detokenizer.text)
    assert shown == ["x", "x", "x", "xENx", "xENx", "xENx", "xENx", "xENxEND!"]


def test_what_waited_shows_when_the_text_ends(smollm2: Tokenizer):
    detokenizer = IncrementalDetokenizer(smollm2, [], SamplingParams(stop=["END."]))
    assert detokenizer.append(smollm2.encode("the END"), finished=True) is None
    assert detokenizer.text == "the END"


def test_stop_strings_count_only_from_min_tokens_on(smollm2: Tokenizer):
    ids = [token_id for letter in "abab" for token_id in smollm2.encode(letter)]
    for chunks in (singly(ids), [ids]):
        detokenizer, _ = run(smollm2, chunks, SamplingParams(stop=["ab"], min_tokens=3))
        assert detokenizer.text == "ab"
        assert detokenizer.num_tokens == 4
    detokenizer, _ = run(smollm2, singly(ids), SamplingParams(stop=["ab"], min_tokens=2))
    assert detokenizer.text == ""
    # It began before min_tokens and completes after: that counts.
    detokenizer, _ = run(smollm2, singly(ids[:2] + smollm2.encode("c")), SamplingParams(stop=["abc"], min_tokens=3))
    assert detokenizer.text == ""


def test_nothing_follows_a_stop_string(smollm2: Tokenizer):
    detokenizer = IncrementalDetokenizer(smollm2, [], SamplingParams(stop=["b"]))
    assert detokenizer.append(smollm2.encode("a b"), finished=False) == "b"
    assert detokenizer.append(smollm2.encode("more"), finished=True) == "b"
    assert detokenizer.text == "a "


@settings(max_examples=50, deadline=None)
@given(ids=random_ids(), reads=st.lists(st.booleans(), min_size=60, max_size=60))
def test_the_text_only_grows_whenever_it_is_read(smollm2: Tokenizer, ids: list[int], reads: list[bool]):
    detokenizer = IncrementalDetokenizer(smollm2, [], SamplingParams())
    before = ""
    for token_id, read_text in zip(ids, reads, strict=False):
        detokenizer.append([token_id], finished=False)
        if read_text:
            assert detokenizer.text.startswith(before)
            before = detokenizer.text
    detokenizer.append([], finished=True)
    assert detokenizer.text.startswith(before)
    assert detokenizer.text == smollm2.decode(ids)


@pytest.mark.parametrize(("prompt", "text"), [([], "hi hié"), ([1], " hi hié")])
def test_a_sentence_piece_text_keeps_its_first_space_after_a_prompt(tmp_path: Path, prompt: list[int], text: str):
    pieces = [("▁", -9.0), ("h", -9.0), ("i", -9.0), ("hi", -2.0), ("▁hi", -1.0)]
    tokenizer = load_tokenizer(write_sentence_piece(tmp_path / "t.gguf", pieces))
    ids = tokenizer.encode("hi hié", add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, SamplingParams())
    for token_id in ids:
        detokenizer.append([token_id], finished=False)
    detokenizer.append([], finished=True)
    assert detokenizer.text == text
    assert tokenizer.decode(ids) == "hi hié"
