"""``POST /v1/completions``."""

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_engine.errors import InvalidRequest, Unsupported
from vllm_engine.frontend.prompt_embeds import check_enabled
from vllm_engine.frontend.prompts import Prompt
from vllm_engine.messages import PromptEmbeds
from vllm_engine.params import SamplingParams
from vllm_server.access.request_id import take_label
from vllm_server.answers.completion import CompletionAnswer
from vllm_server.answers.event_stream import EventStream
from vllm_server.answers.generation import Generation
from vllm_server.answers.receipts import receipt_book
from vllm_server.context import ServerContext, context_of, new_id
from vllm_server.field_names import named_as_in_request
from vllm_server.files.tensor_files import decode_embeds
from vllm_server.json_body import convert, parse_object, read_json_body
from vllm_server.openapi import body_docs
from vllm_server.prompts.completion import check_count, parse_prompts
from vllm_server.protocol.completions import Completion, CompletionRequest
from vllm_server.protocol.fields import REFUSED_COMPLETION, without_refused
from vllm_server.protocol.sampling import check_priority, check_stream_options, sampling_params
from vllm_server.routes.direct_route import DirectRoute

router = APIRouter(route_class=DirectRoute)

DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", openapi_extra=body_docs(CompletionRequest, Completion))
async def create_completion(raw: Request) -> Response:
    """Continue one or more prompts."""
    context_of(raw).in_flight.check_open()
    return await answer(raw, parse_object(await read_json_body(raw)))


async def answer(raw: Request, fields: dict[str, Any]) -> Response:
    """The response to a request with these fields."""
    context = context_of(raw)
    request = convert(without_refused(fields, REFUSED_COMPLETION), CompletionRequest)
    take_label(raw, request.request_id)
    receipts = receipt_book(raw, request.include_receipt)
    model = context.model_name(request.model)
    _check(request, context.llm.config.scheduler.scheduling_policy)
    params = _sampling_params(request, context)
    embeds = await _embeds(request, context, params.n)
    prompts: list[str | list[int]] = [[] for _ in embeds] or _prompts(request, params.n)
    response_id = new_id("cmpl")
    writer = CompletionAnswer(
        request, params, prompts, response_id, model, context.llm.tokenizer, context.config, receipts
    )
    generation = Generation(
        context.llm,
        [{"prompt_embeds": item} for item in embeds] or [_engine_prompt(request, prompt) for prompt in prompts],
        params,
        response_id,
        request.priority or 0,
        request.cache_salt,
        {"prompt_logprobs": "logprobs"} if request.prompt_logprobs is None else {},
    )
    if request.stream:
        return EventStream(writer.blocks(generation), context.in_flight)
    work = generation.answer(lambda outputs: receipts.sealed(writer.whole(outputs)))
    return Response(await context.in_flight.run(raw.receive, work), media_type="application/json")


def _check(request: CompletionRequest, policy: str) -> None:
    check_stream_options(request)
    check_priority(request, policy)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise Unsupported("best_of must be as n: all that is generated is returned", field="best_of")
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs needs stream to be false", field="prompt_logprobs")
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens can be 0 only with echo; else at least 1", field="max_tokens")


def _sampling_params(request: CompletionRequest, context: ServerContext) -> SamplingParams:
    """``max_tokens`` 0 with ``echo`` scores the prompt: one token is made, and left out of the answer."""
    defaults = context.default_sampling_params
    max_tokens = request.max_tokens
    if max_tokens is None:
        max_tokens = defaults.get("max_tokens", DEFAULT_MAX_TOKENS)
    prompt_logprobs = request.prompt_logprobs
    names = {}
    if prompt_logprobs is None and request.echo:
        prompt_logprobs = request.logprobs
        names = {"prompt_logprobs": "logprobs"}
    with named_as_in_request(names):
        return sampling_params(
            request,
            defaults,
            max_tokens=max_tokens or 1,
            max_tokens_asked=request.max_tokens is not None,
            logprobs=request.logprobs,
            prompt_logprobs=prompt_logprobs,
        )


async def _embeds(request: CompletionRequest, context: ServerContext, n: int) -> list[PromptEmbeds]:
    """The prompts that are given as embeddings, in a request that makes no sense with them otherwise: none without."""
    given = request.prompt_embeds
    if given is None or given == []:
        return []
    spec = check_enabled(context.llm.ready.prompt_embeds)
    if request.prompt:
        raise InvalidRequest("prompt must be empty or left out where prompt_embeds is given", field="prompt")
    if request.echo:
        raise InvalidRequest("echo has nothing to repeat: prompt_embeds has no text", field="echo")
    if request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs has no tokens to score in prompt_embeds", field="prompt_logprobs")
    texts = [given] if isinstance(given, str) else given
    check_count(len(texts), n, "prompt_embeds")
    decode = partial(decode_embeds, texts, width=spec.width, max_model_len=context.llm.ready.max_model_len)
    return await asyncio.to_thread(decode)


def _prompts(request: CompletionRequest, n: int) -> list[str | list[int]]:
    if request.prompt is None:
        raise InvalidRequest("prompt is missing", field="prompt")
    return parse_prompts(request.prompt, n)


def _engine_prompt(request: CompletionRequest, prompt: str | list[int]) -> Prompt:
    if isinstance(prompt, str) and request.add_special_tokens is not None:
        return {"prompt": prompt, "add_special_tokens": request.add_special_tokens}
    return prompt
