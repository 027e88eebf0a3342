"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``: Anthropic's API over the way of chat completions."""

from functools import partial

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_engine.frontend.prompts import Prompt
from vllm_server.answers.event_stream import EventStream
from vllm_server.answers.generation import Generation
from vllm_server.answers.messages import MessageAnswer, tagged_event
from vllm_server.answers.receipts import receipt_book
from vllm_server.anthropic_errors import PATH, MessagesErrorBody, label_of
from vllm_server.context import ServerContext, context_of, new_id
from vllm_server.errors import messages_error_of
from vllm_server.field_names import named_as_in_request
from vllm_server.json_body import convert, parse_object, read_json_body
from vllm_server.openapi import body_docs
from vllm_server.prompts.chat import chat_params
from vllm_server.prompts.conversation import conversation_of
from vllm_server.prompts.encoding import encode
from vllm_server.prompts.messages import FIELD_NAMES, chat_request_of
from vllm_server.prompts.rendering import render
from vllm_server.protocol.chat import ChatRequest
from vllm_server.protocol.fields import REFUSED_MESSAGES, without_refused
from vllm_server.protocol.messages import AnthropicMessage, CountTokensRequest, MessagesRequest, TokenCount
from vllm_server.routes.direct_route import DirectRoute

router = APIRouter(route_class=DirectRoute)


@router.post(PATH, openapi_extra=body_docs(MessagesRequest, AnthropicMessage, error=MessagesErrorBody))
async def create_message(raw: Request) -> Response:
    """Answer the last message of a conversation, or go on with it if it is the assistant's."""
    context = context_of(raw)
    context.in_flight.check_open()
    fields = without_refused(parse_object(await read_json_body(raw)), REFUSED_MESSAGES, hints=())
    request = convert(fields, MessagesRequest)
    model = context.model_name(request.model)
    chat = chat_request_of(request)
    _add_sampling(chat, request)
    receipts = receipt_book(raw, request.include_receipt)
    with named_as_in_request(FIELD_NAMES):
        params = chat_params(chat, context)
    # A chat template writes the special tokens itself.
    prompt: Prompt = {"prompt": await _text(chat, context), "add_special_tokens": False}
    response_id = new_id("msg")
    details = context.config.enable_prompt_tokens_details
    writer = MessageAnswer(response_id, model, request.stop_sequences or (), receipts, details=details)
    generation = Generation(
        context.llm, [prompt], params, response_id, cache_salt=request.cache_salt, field_names=FIELD_NAMES
    )
    if request.stream:
        failure = partial(_error_event, label_of(raw.scope))
        return EventStream(writer.blocks(generation), context.in_flight, end=b"", failure=failure)
    (output,) = await context.in_flight.run(raw.receive, generation.final_outputs())
    return Response(receipts.sealed(writer.whole(output)), media_type="application/json")


@router.post(f"{PATH}/count_tokens", openapi_extra=body_docs(CountTokensRequest, TokenCount, error=MessagesErrorBody))
async def count_tokens(raw: Request) -> Response:
    """How many tokens the prompt of a conversation has."""
    context = context_of(raw)
    context.in_flight.check_open()
    fields = without_refused(parse_object(await read_json_body(raw)), REFUSED_MESSAGES, hints=())
    request = convert(fields, CountTokensRequest)
    context.model_name(request.model)
    text = await _text(chat_request_of(request), context)
    ids = await context.in_flight.run(raw.receive, encode(context, text, "messages", special=False))
    return Response(msgspec.json.encode(TokenCount(len(ids))), media_type="application/json")


async def _text(chat: ChatRequest, context: ServerContext) -> str:
    with named_as_in_request(FIELD_NAMES):
        return await render(conversation_of(chat), context)


def _add_sampling(chat: ChatRequest, request: MessagesRequest) -> None:
    chat.max_tokens = request.max_tokens
    chat.stop = request.stop_sequences
    chat.temperature = request.temperature
    chat.top_k = request.top_k
    chat.top_p = request.top_p
    chat.stream = request.stream
    chat.vllm_xargs = request.vllm_xargs


def _error_event(label: str | None, error: Exception) -> bytes:
    return tagged_event(messages_error_of(error, label))
