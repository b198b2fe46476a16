"""The tokenizer that a GGUF file's metadata describes: byte-level BPE (``gpt2``) or SentencePiece BPE (``llama``).

transformers can read these too, but it cuts every text by GPT-2's rules whatever ``tokenizer.ggml.pre`` says; for
SmolLM2 that gives wrong ids for digits after two or more spaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Backend

from parhelion.errors import CheckpointError
from parhelion.models.chat_template import ChatTemplate
from parhelion.models.gguf_config import gguf_eos_token_ids
from parhelion.models.gguf_header import GgufHeader, read_gguf_header
from parhelion.models.pretokenizers import PreTokenizer, find_pre_tokenizer, pre_tokenizer_names
from parhelion.models.tokenizer import Tokenizer

_TOKENS = "tokenizer.ggml.tokens"
_NAMED_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
# Values of tokenizer.ggml.token_type that matter here.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE_MARK = "▁"


def load_gguf_tokenizer(path: Path) -> Tokenizer:
    """Build the tokenizer of a GGUF file.

    Raises:
        CheckpointError: no vocabulary, or a kind that is not supported.
    """
    header = read_gguf_header(path)
    tokens = header.texts(_TOKENS)
    if not tokens:
        raise CheckpointError(f"{path} holds no vocabulary: give a folder with a tokenizer with --tokenizer")
    kind = header.text("tokenizer.ggml.model")
    if kind == "gpt2":
        backend, adds_bos = _byte_level(header, tokens)
    elif kind == "llama":
        backend, adds_bos = _sentence_piece(header, tokens), True
    else:
        raise CheckpointError(
            f"{path} has a tokenizer of model {kind!r}; supported are 'gpt2' and 'llama': "
            "give a folder with a tokenizer with --tokenizer"
        )
    backend.add_tokens(list(_added_tokens(header, tokens)))
    _frame(header, tokens, backend, adds_bos)
    template = header.text("tokenizer.chat_template")
    return Tokenizer(
        backend,
        eos_token_ids=gguf_eos_token_ids(header),
        bos_token_id=header.integer("tokenizer.ggml.bos_token_id"),
        chat_template=_chat_template(header, tokens, template) if template else None,
    )


def _byte_level(header: GgufHeader, tokens: list[str]) -> tuple[Backend, bool]:
    rules = _rules(header)
    merges = [merge.partition(" ")[::2] for merge in header.texts("tokenizer.ggml.merges") or []]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    try:
        backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=rules.whole_words))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"{header.path}: its merges do not fit its vocabulary ({error}): convert again"
        ) from error
    backend.normalizer = rules.build_normalizer()
    backend.pre_tokenizer = rules.build()
    backend.decoder = decoders.ByteLevel()
    return backend, rules.adds_bos


def _rules(header: GgufHeader) -> PreTokenizer:
    # Files from before there was such a key have none; their architecture tells all the same.
    without_key = "qwen2" if (header.text("general.architecture") or "").startswith("qwen") else "default"
    name = header.text("tokenizer.ggml.pre") or without_key
    rules = find_pre_tokenizer(name)
    if rules is None:
        raise CheckpointError(
            f"{header.path} wants the pre-tokenizer {name!r}; known are {', '.join(pre_tokenizer_names())}: "
            "give a folder with the model's tokenizer.json with --tokenizer"
        )
    return rules


def _sentence_piece(header: GgufHeader, tokens: list[str]) -> Backend:
    """BPE whose merges follow from the pieces' scores: the pair that makes the likeliest piece merges first."""
    scores = header.numbers("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError(f"{header.path} has no score for each token: convert the model to GGUF again")
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    unknown = _named_ids(header, tokens).get("unk_token", 0)
    merges = _merges_from_scores(vocab, scores)
    backend = Backend(
        models.BPE(vocab=vocab, merges=merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    )
    prefix_space = header.integer("tokenizer.ggml.add_space_prefix") != 0
    marks = normalizers.Replace(" ", _SPACE_MARK)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE_MARK), marks]) if prefix_space else marks
    steps = [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix_space else steps)
    return backend


def _merges_from_scores(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two pieces, the best score first."""
    ranked: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece, token_id in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[token_id], vocab[left], vocab[right], (left, right)))
    ranked.sort()
    return [pair for _, _, _, pair in ranked]


def _added_tokens(header: GgufHeader, tokens: list[str]) -> Iterator[AddedToken]:
    """Control tokens, which a text leaves out, and user-defined ones, which it keeps; neither is ever split."""
    kinds = header.numbers("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (_CONTROL, _USER_DEFINED):
            yield AddedToken(token, special=kind == _CONTROL, normalized=False)


def _frame(header: GgufHeader, tokens: list[str], backend: Backend, adds_bos: bool) -> None:
    """Have ``encode`` put the begin and end tokens around a text where the file asks for them."""
    wants_bos, wants_eos = (
        header.integer("tokenizer.ggml.add_bos_token"),
        header.integer("tokenizer.ggml.add_eos_token"),
    )
    ids = _named_ids(header, tokens)
    before = ids.get("bos_token") if (adds_bos if wants_bos is None else bool(wants_bos)) else None
    after = ids.get("eos_token") if wants_eos else None
    framing = [token_id for token_id in (before, after) if token_id is not None]
    if not framing:
        return
    single = f"{'' if before is None else 'BOS:0 '}$A:0{'' if after is None else ' EOS:0'}"
    names = [("BOS", before), ("EOS", after)]
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[(name, token_id) for name, token_id in names if token_id is not None],
    )


def _chat_template(header: GgufHeader, tokens: list[str], template: str) -> ChatTemplate:
    named = {name: tokens[token_id] for name, token_id in _named_ids(header, tokens).items()}
    return ChatTemplate(template, special_tokens=named)


def _named_ids(header: GgufHeader, tokens: list[str]) -> dict[str, int]:
    """The ids of the tokens that have a role, under transformers' names for the roles; those without are left out."""
    ids = {name: header.integer(key) for name, key in _NAMED_TOKENS.items()}
    for name, token_id in ids.items():
        if token_id is not None and not 0 <= token_id < len(tokens):
            raise CheckpointError(
                f"{header.path}: {_NAMED_TOKENS[name]} is {token_id}, outside the vocabulary of {len(tokens)}: "
                "convert the model to GGUF again"
            )
    return {name: token_id for name, token_id in ids.items() if token_id is not None}
