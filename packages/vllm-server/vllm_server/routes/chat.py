"""``POST /v1/chat/completions``."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_engine.errors import InvalidRequest
from vllm_engine.frontend.prompts import Prompt
from vllm_server.access.request_id import take_label
from vllm_server.answers.chat import ChatAnswer
from vllm_server.answers.event_stream import EventStream
from vllm_server.answers.generation import Generation
from vllm_server.answers.receipts import receipt_book
from vllm_server.context import context_of, new_id
from vllm_server.field_names import named_as_in_request
from vllm_server.json_body import convert, parse_object, read_json_body
from vllm_server.openapi import body_docs
from vllm_server.prompts.chat import chat_params
from vllm_server.prompts.conversation import Conversation, conversation_of
from vllm_server.prompts.rendering import render
from vllm_server.protocol.chat import ChatCompletion, ChatRequest
from vllm_server.protocol.fields import REFUSED_CHAT, without_refused
from vllm_server.protocol.sampling import check_priority, check_stream_options
from vllm_server.routes.direct_route import DirectRoute

router = APIRouter(route_class=DirectRoute)


@router.post("/v1/chat/completions", openapi_extra=body_docs(ChatRequest, ChatCompletion))
async def create_chat_completion(raw: Request) -> Response:
    """Answer the last message of a conversation."""
    context_of(raw).in_flight.check_open()
    return await answer(raw, parse_object(await read_json_body(raw)))


async def answer(raw: Request, fields: dict[str, Any]) -> Response:
    """The response to a request with these fields."""
    context = context_of(raw)
    request = convert(without_refused(fields, REFUSED_CHAT), ChatRequest)
    take_label(raw, request.request_id)
    receipts = receipt_book(raw, request.include_receipt)
    model = context.model_name(request.model)
    check_chat(request, context.llm.config.scheduler.scheduling_policy)
    names = chat_field_names(request)
    with named_as_in_request(names):
        params = chat_params(request, context)
    conversation = conversation_of(request, trust_template=context.config.trust_request_chat_template)
    # A chat template writes the special tokens itself.
    prompt: Prompt = {
        "prompt": await render(conversation, context),
        "add_special_tokens": bool(request.add_special_tokens),
    }
    response_id = new_id("chatcmpl")
    role = context.config.response_role if conversation.add_generation_prompt else request.messages[-1].role
    writer = ChatAnswer(
        request,
        response_id,
        model,
        role,
        context.llm.tokenizer,
        context.config,
        receipts,
        echoed(request, conversation, role),
    )
    generation = Generation(
        context.llm, [prompt], params, response_id, request.priority or 0, request.cache_salt, names
    )
    if request.stream:
        return EventStream(writer.blocks(generation), context.in_flight)
    work = generation.answer(lambda outputs: receipts.sealed(writer.whole(outputs[0])))
    return Response(await context.in_flight.run(raw.receive, work), media_type="application/json")


def check_chat(request: ChatRequest, policy: str) -> None:
    """Raises ``InvalidRequest`` for fields that do not go together."""
    check_stream_options(request)
    check_priority(request, policy)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", field="top_logprobs")
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs needs stream to be false", field="prompt_logprobs")


def chat_field_names(request: ChatRequest) -> dict[str, str]:
    """What the engine's fields are called in a request, for error messages."""
    names = {"logprobs": "top_logprobs", "prompt": "messages", "prompt_token_ids": "messages"}
    if request.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    return names


def echoed(request: ChatRequest, conversation: Conversation, role: str) -> str:
    """What ``echo`` puts before the answer: the last message, if the answer goes on with that speaker's words."""
    last = conversation.messages[-1]
    if not request.echo or last["role"] != role:
        return ""
    content = last["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
