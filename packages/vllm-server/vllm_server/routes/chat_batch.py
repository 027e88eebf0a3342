"""``POST /v1/chat/completions/batch``: several conversations in one request, one choice for each."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_engine.frontend.prompts import Prompt
from vllm_engine.outputs import RequestOutput
from vllm_server.access.request_id import take_label
from vllm_server.answers.chat import ChatAnswer
from vllm_server.answers.generation import Generation
from vllm_server.answers.receipts import receipt_book
from vllm_server.answers.token_counts import TokenCounts
from vllm_server.context import ServerContext, context_of, new_id
from vllm_server.field_names import named_as_in_request
from vllm_server.json_body import convert, parse_object, read_json_body
from vllm_server.openapi import body_docs
from vllm_server.prompts.chat import chat_params
from vllm_server.prompts.completion import check_count
from vllm_server.prompts.conversation import Conversation, conversation_of
from vllm_server.prompts.rendering import render
from vllm_server.protocol.chat import ChatBatchRequest, ChatCompletion, ChatRequest
from vllm_server.protocol.fields import REFUSED_CHAT, without_refused
from vllm_server.routes.chat import chat_field_names, check_chat, echoed
from vllm_server.routes.direct_route import DirectRoute

router = APIRouter(route_class=DirectRoute)

_ONE_ANSWER = {
    "stream": ((None, False), "answers of a batch come together"),
    "n": ((None, 1), "each conversation of a batch has one answer"),
    "tools": ((None, []), "conversations of a batch call no tools"),
}
"""Field -> values that a batch takes, and why no others."""


@router.post("/v1/chat/completions/batch", openapi_extra=body_docs(ChatBatchRequest, ChatCompletion))
async def create_chat_completions(raw: Request) -> Response:
    """Answer the last message of each conversation; choice ``i`` is the answer to conversation ``i``.

    One that cannot be answered fails them all.
    """
    context = context_of(raw)
    context.in_flight.check_open()
    fields = without_refused(parse_object(await read_json_body(raw)), REFUSED_CHAT)
    batch = convert(fields, ChatBatchRequest)
    take_label(raw, batch.request_id)
    receipts = receipt_book(raw, batch.include_receipt)
    model = context.model_name(batch.model)
    requests = _requests(batch)
    check_chat(requests[0], context.llm.config.scheduler.scheduling_policy)
    names = chat_field_names(requests[0])
    with named_as_in_request(names):
        params = chat_params(requests[0], context)
    conversations, prompts = [], []
    for index, request in enumerate(requests):
        await asyncio.sleep(0)  # a thousand conversations, each rendered at once, would stop every stream for long
        conversation, prompt = await _read(request, index, context)
        conversations.append(conversation)
        prompts.append(prompt)
    response_id = new_id("chatcmpl")
    generation = Generation(context.llm, prompts, params, response_id, batch.priority or 0, batch.cache_salt, names)

    def written(outputs: list[RequestOutput]) -> bytes:
        counts = TokenCounts()
        choices = []
        answer: ChatCompletion | None = None
        for index, (request, conversation, output) in enumerate(zip(requests, conversations, outputs, strict=True)):
            role = context.config.response_role if conversation.add_generation_prompt else request.messages[-1].role
            echo = echoed(request, conversation, role)
            writer = ChatAnswer(
                request, response_id, model, role, context.llm.tokenizer, context.config, receipts, echo
            )
            answer = writer.whole(output)
            (choice,) = answer.choices
            choice.index = index
            choice.prompt_token_ids, choice.prompt_logprobs = answer.prompt_token_ids, answer.prompt_logprobs
            choices.append(choice)
            counts.add(index, output)
        usage = counts.usage(details=context.config.enable_prompt_tokens_details)
        whole = ChatCompletion(response_id, answer.created if answer else 0, model, choices, usage)
        return receipts.sealed(whole)

    body = await context.in_flight.run(raw.receive, generation.answer(written))
    return Response(body, media_type="application/json")


def _requests(batch: ChatBatchRequest) -> list[ChatRequest]:
    """One request for each conversation. Raises ``InvalidRequest`` for what a batch does not take."""
    if not batch.messages:
        raise InvalidRequest("messages must not be empty", field="messages")
    check_count(len(batch.messages), 1, "messages")
    for name, (possible, reason) in _ONE_ANSWER.items():
        if getattr(batch, name) not in possible:
            raise Unsupported(f"{name} is not supported: {reason}", field=name)
    shared = {name: getattr(batch, name) for name in batch.__struct_fields__ if name != "messages"}
    return [ChatRequest(**shared, messages=messages) for messages in batch.messages]


async def _read(request: ChatRequest, index: int, context: ServerContext) -> tuple[Conversation, Prompt]:
    """One conversation and its text. Errors name its place: ``messages[1][0].content``."""
    try:
        conversation = conversation_of(request, trust_template=context.config.trust_request_chat_template)
        text = await render(conversation, context)
    except InvalidRequest as error:
        field = error.field or ""
        if not field.startswith("messages"):
            raise
        place = f"messages[{index}]{field.removeprefix('messages')}"
        raise type(error)(str(error).replace(field, place, 1), field=place) from error
    # A chat template writes the special tokens itself.
    return conversation, {"prompt": text, "add_special_tokens": bool(request.add_special_tokens)}
