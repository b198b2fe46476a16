"""``POST /tokenize`` and ``POST /detokenize``, as vLLM has them."""

from __future__ import annotations

from functools import partial

from parhelion.errors import InvalidRequestError
from parhelion.server.context import ServingContext
from parhelion.server.prompts import check_token_ids, encode, render_chat
from parhelion.server.protocol import DetokenizeRequest, TokenizeRequest
from parhelion.server.responses import DetokenizeResponse, TokenizeResponse
from parhelion.server.threads import beside_the_loop


async def tokenize(context: ServingContext, body: TokenizeRequest) -> TokenizeResponse:
    """Token ids of a prompt, or of messages through the chat template.

    Raises:
        InvalidRequestError: both are given, or neither.
    """
    context.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("give either prompt or messages", "prompt")
    tokenizer = context.engine.tokenizer
    if body.prompt is not None:
        (tokens,) = await encode(tokenizer, [body.prompt], add_special_tokens=body.add_special_tokens is not False)
    else:
        text = await render_chat(tokenizer, body.messages or [], body)
        (tokens,) = await encode(tokenizer, [text], add_special_tokens=bool(body.add_special_tokens))
    texts = None
    if body.return_token_strs:
        texts = await beside_the_loop(len(tokens), lambda: [tokenizer.token_text(token_id) for token_id in tokens])
    return TokenizeResponse(len(tokens), context.engine.max_model_len, tokens, texts)


async def detokenize(context: ServingContext, body: DetokenizeRequest) -> DetokenizeResponse:
    """Text of token ids, special tokens included."""
    context.check_model(body.model)
    check_token_ids(body.tokens, context.engine.tokenizer.vocab_size, "tokens")
    decode = partial(context.engine.tokenizer.decode, body.tokens, False)
    return DetokenizeResponse(await beside_the_loop(len(body.tokens), decode))
