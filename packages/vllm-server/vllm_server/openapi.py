"""The request and response bodies in ``/openapi.json``: FastAPI sees raw requests, the schemas come from msgspec."""

from typing import Any

import msgspec
from fastapi import FastAPI

from vllm_server.anthropic_errors import MessagesErrorBody
from vllm_server.errors import ErrorBody
from vllm_server.protocol.chat import ChatBatchRequest, ChatCompletion, ChatRequest
from vllm_server.protocol.completions import Completion, CompletionRequest
from vllm_server.protocol.control import CollectiveRpcRequest, CollectiveRpcResults
from vllm_server.protocol.messages import AnthropicMessage, CountTokensRequest, MessagesRequest, TokenCount
from vllm_server.protocol.models import ModelCard, ModelList
from vllm_server.protocol.responses import (
    DeletedResponse,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputTokens,
    ItemList,
    MessageItem,
    RefusalPart,
    ResponseObject,
    ResponsesRequest,
    TextPart,
    TokenCountRequest,
)
from vllm_server.protocol.tokens import (
    DetokenizedText,
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizerInfo,
    TokenizeTextRequest,
    Tokens,
)

_PREFIX = "#/components/schemas/"
_TYPES = (
    CompletionRequest,
    Completion,
    ChatRequest,
    ChatBatchRequest,
    ChatCompletion,
    MessagesRequest,
    AnthropicMessage,
    CountTokensRequest,
    TokenCount,
    MessagesErrorBody,
    ModelList,
    ModelCard,
    TokenizeTextRequest,
    TokenizeChatRequest,
    Tokens,
    DetokenizeRequest,
    DetokenizedText,
    TokenizerInfo,
    ResponsesRequest,
    MessageItem,
    FunctionCallItem,
    FunctionCallOutputItem,
    TextPart,
    RefusalPart,
    ResponseObject,
    DeletedResponse,
    ItemList,
    TokenCountRequest,
    InputTokens,
    CollectiveRpcRequest,
    CollectiveRpcResults,
    ErrorBody,
)


FLAG = {"type": "boolean"}
TEXTS = {"type": "array", "items": {"type": "string"}}

Body = type[msgspec.Struct] | tuple[type[msgspec.Struct], ...]
"""The type of a JSON body, or those of which it is one."""


def body_docs(request: Body, response: Body, *, error: type[msgspec.Struct] = ErrorBody) -> dict[str, Any]:
    """``openapi_extra`` of a route that takes and gives JSON."""
    return {"requestBody": {"required": True, "content": _json(request)}, **response_docs(response, error=error)}


def response_docs(response: Body, *, error: type[msgspec.Struct] = ErrorBody) -> dict[str, Any]:
    """``openapi_extra`` of a route that gives JSON."""
    return {
        "responses": {
            "200": {"description": "The answer, or a stream of events", "content": _json(response)},
            "4XX": {"description": "What is wrong with the request", "content": _json(error)},
            "5XX": {"description": "What is wrong with the server", "content": _json(error)},
        },
    }


def query_docs(**parameters: dict[str, Any]) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads these parameters of the URL: name -> JSON schema. None is needed."""
    found = [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in parameters.items()]
    return {"parameters": found}


def add_schemas(app: FastAPI) -> None:
    """Put the schemas that ``body_docs`` refers to into the application's description."""
    describe = app.openapi

    def with_schemas() -> dict[str, Any]:
        description = describe()
        _, schemas = msgspec.json.schema_components(_TYPES, ref_template=_PREFIX + "{name}")
        description.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
        return description

    app.openapi = with_schemas  # type: ignore[method-assign]


def _json(body: Body) -> dict[str, Any]:
    kinds = body if isinstance(body, tuple) else (body,)
    schemas = [{"$ref": _PREFIX + kind.__name__} for kind in kinds]
    return {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
