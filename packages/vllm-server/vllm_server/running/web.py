"""All that needs the web framework, behind one import: it is made in a thread while the engine starts."""

from vllm_server.app import build_app
from vllm_server.context import ServerContext
from vllm_server.response_store import ResponseStore
from vllm_server.running.uvicorn_server import create_server

__all__ = ["ResponseStore", "ServerContext", "build_app", "create_server"]
