"""``/v1/responses``: answers that can be asked for again, and made in the background."""

import asyncio
import dataclasses
import re
import time
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_engine.outputs import RequestOutput
from vllm_engine.params import OutputKind, SamplingParams
from vllm_server.access.request_id import take_label
from vllm_server.access.tenant import current_tenant
from vllm_server.answers.event_stream import EventStream
from vllm_server.answers.generation import Generation
from vllm_server.answers.logprobs import TokenNames
from vllm_server.answers.receipts import receipt_book
from vllm_server.answers.response_runs import BackgroundRun, error_event, streamed
from vllm_server.answers.responses import ResponseAnswer
from vllm_server.context import ServerContext, context_of
from vllm_server.field_names import named_as_in_request
from vllm_server.json_body import convert, parse_object, read_json_body
from vllm_server.openapi import FLAG, TEXTS, body_docs, query_docs, response_docs
from vllm_server.prompts.chat import chat_params
from vllm_server.prompts.response_items import encode_items, new_item_id
from vllm_server.prompts.responses import (
    FIELD_NAMES,
    LOGPROBS,
    chat_of,
    check_parts,
    items_of,
    prompt_of,
    token_count,
)
from vllm_server.protocol.fields import HINTS_OF_RESPONSES, REFUSED_RESPONSES, without_refused
from vllm_server.protocol.responses import (
    DeletedResponse,
    InputTokens,
    ItemList,
    Reasoning,
    ResponseObject,
    ResponsesRequest,
    TokenCountRequest,
)
from vllm_server.protocol.sampling import check_priority
from vllm_server.response_store import ID_OF_PROCESS, KeptResponse, ResponseStore, SharedResponse
from vllm_server.routes.direct_route import DirectRoute
from vllm_server.telemetry.request_record import current_record

router = APIRouter(route_class=DirectRoute)

PAGE = 20
MAX_PAGE = 100


@router.post("/v1/responses", openapi_extra=body_docs(ResponsesRequest, ResponseObject))
async def create_response(raw: Request) -> Response:
    """Answer a conversation."""
    context = context_of(raw)
    context.in_flight.check_open()
    fields = parse_object(await read_json_body(raw))
    check_parts(fields)
    request = convert(without_refused(fields, REFUSED_RESPONSES, hints=HINTS_OF_RESPONSES), ResponsesRequest)
    take_label(raw, request.request_id)
    receipts = receipt_book(raw, request.include_receipt)
    model = context.model_name(request.model)
    _check(request, context)
    items = items_of(request, await _previous(request.previous_response_id, context))
    chat = chat_of(request, items)
    check_priority(chat, context.llm.config.scheduler.scheduling_policy)
    with named_as_in_request(FIELD_NAMES):
        params = chat_params(chat, context)
    if request.stream or request.background:  # a response that is cancelled has what there was of it
        params = params.replace(output_kind=OutputKind.DELTA)
    prompt = await context.in_flight.run(raw.receive, prompt_of(request, chat, context))
    response = _response(request, params, context.responses, model)
    kept = KeptResponse(
        id=response.id,
        tenant=current_tenant().name,
        items=encode_items(items) if response.store else b"",
        background=response.background,
        events=[] if response.background and request.stream else None,
    )
    answer = ResponseAnswer(
        response,
        new_item_id("msg"),
        TokenNames(context.llm.tokenizer, context.config.return_tokens_as_token_ids),
        receipts,
        num_logprobs=params.logprobs,
        prompt_text=prompt.text if request.enable_response_messages else None,
        dropped_messages=prompt.dropped,
        with_events=bool(request.stream),
    )
    generation = Generation(
        context.llm, [prompt.prompt], params, response.id, request.priority or 0, request.cache_salt, FIELD_NAMES
    )
    if request.background:
        return await _in_background(answer, kept, generation, context, stream=bool(request.stream))

    def keep() -> None:
        if response.store:
            kept.body = answer.body
            kept.ended = True
            context.responses.add(kept)

    if request.stream:
        blocks = streamed(answer, generation, context.in_flight, keep)
        return EventStream(blocks, context.in_flight, end=b"", failure=lambda error: b"".join(answer.fail(error)))

    def written(outputs: list[RequestOutput]) -> bytes:
        answer.take(outputs[0])
        answer.end()
        return answer.body

    body = await context.in_flight.run(raw.receive, generation.answer(written))
    keep()
    return _json(body)


@router.post("/v1/responses/input_tokens", openapi_extra=body_docs(TokenCountRequest, InputTokens))
async def count_input_tokens(raw: Request) -> Response:
    """How many tokens the model would read."""
    context = context_of(raw)
    context.in_flight.check_open()
    fields = parse_object(await read_json_body(raw))
    check_parts(fields)
    request = convert(without_refused(fields, REFUSED_RESPONSES, hints=HINTS_OF_RESPONSES), TokenCountRequest)
    context.model_name(request.model)
    whole = ResponsesRequest(**{name: getattr(request, name) for name in request.__struct_fields__})
    items = items_of(whole, await _previous(request.previous_response_id, context))
    prompt = await context.in_flight.run(raw.receive, prompt_of(whole, chat_of(whole, items), context))
    count = await context.in_flight.run(raw.receive, token_count(prompt, context))
    return _json(msgspec.json.encode(InputTokens(count)))


@router.get(
    "/v1/responses/{response_id}",
    openapi_extra=response_docs(ResponseObject)
    | query_docs(
        stream=FLAG, starting_after={"type": "integer", "minimum": 0}, include=TEXTS, include_obfuscation=FLAG
    ),
)
async def retrieve_response(raw: Request, response_id: str) -> Response:
    """A response as it is now, or with ``stream`` the events of one that was made as a stream in the background."""
    context = context_of(raw)
    kept = _find(response_id, context)
    query = raw.query_params
    _check_include(query.getlist("include") + query.getlist("include[]"))
    if _flag(query.get("include_obfuscation"), "include_obfuscation"):
        raise Unsupported("include_obfuscation is not supported: streams carry no padding", field="include_obfuscation")
    after = query.get("starting_after")
    if not _flag(query.get("stream"), "stream"):
        if after is not None:
            raise InvalidRequest("starting_after needs stream to be true", field="starting_after")
        return _json(kept.body)
    if kept.events is None:
        raise InvalidRequest("only a response made with background and stream can be streamed again", field="stream")
    return _events(kept, context, 0 if after is None else _number(after, "starting_after", 0, 2**53) + 1)


@router.get(
    "/v1/responses/{response_id}/input_items",
    openapi_extra=response_docs(ItemList)
    | query_docs(
        order={"enum": ["asc", "desc"]},
        limit={"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
        after={"type": "string"},
        include=TEXTS,
    ),
)
async def list_input_items(raw: Request, response_id: str) -> Response:
    """The items that a response answers, those of the responses before it included, the last ones first."""
    kept = _find(response_id, context_of(raw))
    query = raw.query_params
    _check_include(query.getlist("include") + query.getlist("include[]"))
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", field="order")
    limit = _number(query.get("limit", str(PAGE)), "limit", 1, MAX_PAGE)
    items: list[dict[str, Any]] = msgspec.json.decode(kept.items)
    if order == "desc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        place = next((index for index, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise InvalidRequest("after is no item of this response", field="after")
        items = items[place + 1 :]
    page = items[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    return _json(msgspec.json.encode(ItemList(page, first, last, len(items) > limit)))


@router.post("/v1/responses/{response_id}/cancel", openapi_extra=response_docs(ResponseObject))
async def cancel_response(raw: Request, response_id: str) -> Response:
    """End a response that is made in the background. One that has ended stays as it is."""
    kept = _find(response_id, context_of(raw))
    if not kept.background:
        raise InvalidRequest("only a response made with background can be cancelled", field="response_id")
    await _stop(kept)
    return _json(kept.body)


@router.delete("/v1/responses/{response_id}", openapi_extra=response_docs(DeletedResponse))
async def delete_response(raw: Request, response_id: str) -> Response:
    """Forget a response; one that is made in the background ends."""
    context = context_of(raw)
    kept = _find(response_id, context)
    context.responses.drop(kept)
    await _stop(kept)
    return _json(msgspec.json.encode(DeletedResponse(response_id)))


async def _in_background(
    answer: ResponseAnswer, kept: KeptResponse, generation: Generation, context: ServerContext, *, stream: bool
) -> Response:
    run = BackgroundRun(answer, kept, context.responses, context.in_flight)
    await run.start(dataclasses.replace(generation, on_accepted=run.accept))
    current_record().work = kept.task
    return _events(kept, context, 0) if stream else _json(kept.body)


def _events(kept: KeptResponse, context: ServerContext, start: int) -> EventStream:
    def failure(error: Exception) -> bytes:
        return error_event(error, len(kept.events or []))

    return EventStream(kept.follow(start), context.in_flight, end=b"", failure=failure)


async def _stop(kept: KeptResponse) -> None:
    if kept.task is not None and not kept.ended:
        kept.task.cancel()
        await asyncio.wait((kept.task,))


def _find(response_id: str, context: ServerContext) -> KeptResponse:
    return context.responses.find(response_id, current_tenant().name)


async def _previous(response_id: str | None, context: ServerContext) -> KeptResponse | None:
    if response_id is None:
        return None
    field = "previous_response_id"
    context.responses.check_enabled(field)
    kept = await _of_sibling(response_id, context)
    if kept is None:
        kept = context.responses.find(response_id, current_tenant().name, field)
    if not kept.ended:
        raise InvalidRequest(f"{field}: that response has not ended", field=field)
    if msgspec.json.decode(kept.body, type=ResponseObject).status not in ("completed", "incomplete"):
        raise InvalidRequest(f"{field}: that response has no answer to go on from", field=field)
    return kept


async def _of_sibling(response_id: str, context: ServerContext) -> KeptResponse | None:
    """A copy of the response that another process of this server keeps for the same tenant, if it does."""
    found = re.fullmatch(ID_OF_PROCESS, response_id)
    if found is None or context.siblings is None:
        return None
    data = await context.siblings.ask(int(found["process"]), "response", response_id.encode())
    if not data:
        return None
    shared = msgspec.msgpack.decode(data, type=SharedResponse)
    if shared.tenant != current_tenant().name:
        return None
    return KeptResponse(id=response_id, tenant=shared.tenant, items=shared.items, body=shared.body, ended=shared.ended)


def _check(request: ResponsesRequest, context: ServerContext) -> None:
    for name in ("store", "background"):
        if getattr(request, name):
            context.responses.check_enabled(name)
    if request.background and request.store is False:
        raise InvalidRequest("background needs store: what is not kept cannot be asked for", field="background")
    if request.previous_response_id is not None and request.previous_input_messages is not None:
        raise InvalidRequest(
            "previous_input_messages and previous_response_id exclude each other", field="previous_input_messages"
        )
    _check_include(request.include or [])
    if request.top_logprobs and LOGPROBS not in (request.include or []):
        raise InvalidRequest(f"top_logprobs needs include to have {LOGPROBS}", field="top_logprobs")


def _check_include(values: list[str]) -> None:
    for value in values:
        if value != LOGPROBS:
            raise Unsupported(f"include can have {LOGPROBS} only: answers hold nothing else", field="include")


def _response(request: ResponsesRequest, params: SamplingParams, store: ResponseStore, model: str) -> ResponseObject:
    return ResponseObject(
        id=store.new_id(),
        created_at=int(time.time()),
        status="in_progress",
        model=model,
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=request.reasoning or Reasoning(),
        safety_identifier=request.safety_identifier,
        store=store.enabled and request.store is not False,
        temperature=params.temperature,
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_logprobs=request.top_logprobs or 0,
        top_p=params.top_p,
        truncation=request.truncation or "disabled",
        user=request.user,
    )


def _flag(value: str | None, field: str) -> bool:
    if value is None or value.lower() in ("false", "0"):
        return False
    if value.lower() in ("true", "1"):
        return True
    raise InvalidRequest(f"{field} must be true or false", field=field)


def _number(value: str, field: str, low: int, high: int) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 16 and low <= int(value) <= high):
        raise InvalidRequest(f"{field} must be a whole number from {low} to {high}", field=field)
    return int(value)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
