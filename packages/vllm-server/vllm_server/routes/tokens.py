"""``POST /tokenize`` and ``POST /detokenize``: the tokenizer alone, without the engine."""

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_engine.errors import InvalidRequest
from vllm_server.context import ServerContext, context_of
from vllm_server.json_body import convert, parse_object, read_json_body
from vllm_server.openapi import body_docs, response_docs
from vllm_server.prompts.conversation import conversation_of
from vllm_server.prompts.encoding import aside, encode, tokenizer_of
from vllm_server.prompts.rendering import render
from vllm_server.protocol.fields import NOT_FOR_TEXT, without_refused
from vllm_server.protocol.tokens import (
    DetokenizedText,
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizerInfo,
    TokenizeTextRequest,
    Tokens,
)
from vllm_server.routes.direct_route import DirectRoute

router = APIRouter(route_class=DirectRoute)
info_router = APIRouter()

MAX_TOKENS = 1 << 20
"""Most tokens of one request: far more than any model reads."""


@router.post("/tokenize", openapi_extra=body_docs((TokenizeTextRequest, TokenizeChatRequest), Tokens))
async def tokenize(raw: Request) -> Response:
    """The token ids of a prompt, or of a conversation (``messages``)."""
    context = context_of(raw)
    context.in_flight.check_open()
    fields = parse_object(await read_json_body(raw))
    if "messages" in fields:
        work = _of_chat(convert(without_refused(fields, NOT_FOR_TEXT), TokenizeChatRequest), context)
    else:
        work = _of_text(convert(fields, TokenizeTextRequest), context)
    return _json(await context.in_flight.run(raw.receive, work))


@router.post("/detokenize", openapi_extra=body_docs(DetokenizeRequest, DetokenizedText))
async def detokenize(raw: Request) -> Response:
    """The text of token ids."""
    context = context_of(raw)
    context.in_flight.check_open()
    request = convert(parse_object(await read_json_body(raw)), DetokenizeRequest)
    context.model_name(request.model)
    tokenizer = tokenizer_of(context, "tokens")
    if len(request.tokens) > MAX_TOKENS:
        raise InvalidRequest(f"tokens takes at most {MAX_TOKENS} ids", field="tokens")
    work = aside(context, lambda: tokenizer.decode(request.tokens, skip_special_tokens=False), size=len(request.tokens))
    return _json(DetokenizedText(await context.in_flight.run(raw.receive, work)))


@info_router.get("/tokenizer_info", openapi_extra=response_docs(TokenizerInfo))
async def tokenizer_info(raw: Request) -> Response:
    """What the tokenizer is, and its chat template."""
    context = context_of(raw)
    tokenizer = tokenizer_of(context, None)
    return _json(
        TokenizerInfo(
            type(tokenizer).__name__,
            tokenizer.vocab_size,
            context.llm.ready.max_model_len,
            dict(tokenizer.special_tokens_map),
            sorted(tokenizer.all_special_ids),
            tokenizer.bos_token,
            tokenizer.eos_token,
            tokenizer.pad_token,
            context.chat_template or tokenizer.chat_template,
            dict(tokenizer.chat_templates),
        )
    )


async def _of_text(request: TokenizeTextRequest, context: ServerContext) -> Tokens:
    context.model_name(request.model)
    return await _tokens(
        context, request.prompt, "prompt", special=request.add_special_tokens, spell=request.return_token_strs
    )


async def _of_chat(request: TokenizeChatRequest, context: ServerContext) -> Tokens:
    context.model_name(request.model)
    conversation = conversation_of(request, trust_template=context.config.trust_request_chat_template)
    text = await render(conversation, context)
    return await _tokens(context, text, "messages", special=request.add_special_tokens, spell=request.return_token_strs)


async def _tokens(context: ServerContext, text: str, field: str, *, special: bool, spell: bool) -> Tokens:
    ids = await encode(context, text, field, special=special)
    spelled = None
    if spell:
        tokenizer = tokenizer_of(context, field)
        spelled = await aside(context, lambda: tokenizer.convert_ids_to_tokens(ids), size=len(text))
    return Tokens(len(ids), context.llm.ready.max_model_len, ids, spelled)


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
