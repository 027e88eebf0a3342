"""``GET /v1/models`` and one model of it."""

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_server.context import ServerContext, context_of
from vllm_server.openapi import response_docs
from vllm_server.protocol.models import ModelCard, ModelList
from vllm_server.routes.direct_route import DirectRoute

router = APIRouter(route_class=DirectRoute)


@router.get("/v1/models", openapi_extra=response_docs(ModelList))
async def list_models(raw: Request) -> Response:
    """All names under which the model is served."""
    context = context_of(raw)
    cards = [_card(context, name) for name in context.model_names]
    return Response(msgspec.json.encode(ModelList(cards)), media_type="application/json")


@router.get("/v1/models/{name:path}", openapi_extra=response_docs(ModelCard))
async def get_model(raw: Request, name: str) -> Response:
    """One of them."""
    context = context_of(raw)
    return Response(msgspec.json.encode(_card(context, context.model_name(name))), media_type="application/json")


def _card(context: ServerContext, name: str) -> ModelCard:
    return ModelCard(name, context.created, context.llm.config.model.model, context.llm.ready.max_model_len)
