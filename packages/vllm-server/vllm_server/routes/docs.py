"""``GET /docs`` where pages may fetch nothing from elsewhere: the routes and their fields, without a script."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

router = APIRouter()

_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#1a1a1a}"
    "h2{margin-top:2em}code{background:#f2f2f2;padding:0 .2em}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.2em .5em;text-align:left;"
    "vertical-align:top}th{font-weight:600}"
)
_METHODS = ("get", "post", "put", "patch", "delete")
_REFERENCE = "#/components/schemas/"


@router.get("/docs", include_in_schema=False)
async def docs(raw: Request) -> Response:
    """The page."""
    return HTMLResponse(docs_page(raw.app.openapi()), headers=_HEADERS)


def docs_page(description: Mapping[str, Any]) -> str:
    """A page of HTML from an OpenAPI description: each route with what it takes and gives, then each schema."""
    title = f"{description['info']['title']} {description['info']['version']}"
    schemas: dict[str, Any] = description.get("components", {}).get("schemas", {})
    body = [f"<h1>{escape(title)}</h1>", "<h2>Routes</h2>", *_routes(description["paths"]), "<h2>Schemas</h2>"]
    for name in sorted(schemas):
        body += _schema(name, schemas[name])
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>'


def _routes(paths: Mapping[str, Any]) -> Iterator[str]:
    for path in sorted(paths):
        for method in (name for name in _METHODS if name in paths[path]):
            route = paths[path][method]
            yield f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(route.get('description', ''))}</p>"
            asked = [
                f"<code>{escape(parameter['name'])}</code> ({_kind(parameter.get('schema', {}))})"
                for parameter in route.get("parameters", ())
                if parameter["in"] == "query"
            ]
            if asked:
                yield f"<p>In the URL: {', '.join(asked)}.</p>"
            parts = {"takes": route.get("requestBody", {}), "gives": route.get("responses", {}).get("200", {})}
            named = [
                f"{word} {_kind(schema)}"
                for word, part in parts.items()
                if (schema := part.get("content", {}).get("application/json", {}).get("schema"))
            ]
            if named:
                yield f"<p>It {'; '.join(named)}.</p>"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
    fields = schema.get("properties", {})
    if not fields:
        return
    yield "<table><tr><th>field</th><th>type</th><th>default</th></tr>"
    for field, of in fields.items():
        default = "(needed)" if field in schema.get("required", ()) else repr(of["default"]) if "default" in of else ""
        yield f"<tr><td><code>{escape(field)}</code></td><td>{_kind(of)}</td><td>{escape(default)}</td></tr>"
    yield "</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of a value in a word or some, as HTML; another schema's name leads to it."""
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).removeprefix(_REFERENCE))
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema:
        return escape(" | ".join(map(repr, schema["enum"])))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " | ".join(map(_kind, schema[key]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_kind(schema.get('items') or {})}"
    return escape(str(kind))
