"""``POST /invocations``: one route for all that generates, as SageMaker calls its containers."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_engine.errors import InvalidRequest
from vllm_server.context import context_of
from vllm_server.json_body import parse_object, read_json_body
from vllm_server.openapi import body_docs
from vllm_server.protocol.chat import ChatCompletion, ChatRequest
from vllm_server.protocol.completions import Completion, CompletionRequest
from vllm_server.routes import chat, completions
from vllm_server.routes.direct_route import DirectRoute

router = APIRouter(route_class=DirectRoute)

_BY_FIELD = {"messages": chat.answer, "prompt": completions.answer, "prompt_embeds": completions.answer}
"""The field that only requests of one route have -> what answers them."""


@router.post("/invocations", openapi_extra=body_docs((ChatRequest, CompletionRequest), (ChatCompletion, Completion)))
async def invoke(raw: Request) -> Response:
    """As ``/v1/chat/completions`` for a body with ``messages``, as ``/v1/completions`` for one with ``prompt``."""
    context_of(raw).in_flight.check_open()
    fields = parse_object(await read_json_body(raw))
    answer = next((answer for name, answer in _BY_FIELD.items() if name in fields), None)
    if answer is None:
        raise InvalidRequest("the body needs messages or prompt, which tell what it asks for", field="prompt")
    return await answer(raw, fields)
