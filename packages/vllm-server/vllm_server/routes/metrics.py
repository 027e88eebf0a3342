"""``GET /metrics`` for Prometheus."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_server.context import context_of
from vllm_server.routes.direct_route import DirectRoute
from vllm_server.telemetry.snapshot import TEXT_FORMAT, decode, merge, render

router = APIRouter(route_class=DirectRoute)


@router.get("/metrics")
async def metrics(raw: Request) -> Response:
    """All metrics in the text format: of all processes, where several serve the port."""
    context = context_of(raw)
    if context.siblings is None or context.told_counts is None:
        page = context.registry.page()
    else:
        answers = await context.siblings.ask_each("metrics")
        others = [context.told_counts.of(row) if data is None else decode(data) for row, data in answers.items()]
        page = render(merge([context.registry.snapshot(), *others]))
    return Response(page, headers={"content-type": TEXT_FORMAT})
