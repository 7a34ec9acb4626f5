"""vLLM's OpenAI application with our two layers around it, served until told to stop.

This is what vLLM's own `build_and_serve` does, less its signal handlers (they stop the engine under running requests)
and less every route that a gateway does not need.
"""

from __future__ import annotations

import asyncio
import socket
from argparse import Namespace
from collections.abc import Callable

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server import app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import NoSignalServer

from services.inference.http.admission import AdapterAdmission, Agent, InternalKey, Traffic
from services.inference.http.counting import count_tokens
from services.inference.http.serving_models import ManagedServingModels, public_name
from shared.ids import without_step
from shared.settings import Settings

log = structlog.get_logger()

PUBLIC_PATHS = frozenset(
    {
        *("/metrics", "/version", "/v1/models"),
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
        *("/v1/messages", "/v1/messages/count_tokens", "/v1/responses/render", "/tokenize", "/detokenize"),
    }
)
DRAIN_S = 20.0
_KEEP_ALIVE_S = 75  # longer than the gateway keeps idle connections, so that it never writes into a closing one


async def build(
    args: Namespace,
    engine: EngineClient,
    agent: Agent,
    traffic: Traffic,
    settings: Settings,
    key: str,
    *,
    is_ready: Callable[[], bool],
) -> FastAPI:
    """Build the application: vLLM's routes that we serve, admission inside its middleware, the key outside."""
    count_tokens(engine, lambda lora: agent.base_id if lora is None else without_step(public_name(lora)))
    app_state.OpenAIServingModels = ManagedServingModels  # looked up by name in init_app_state
    tasks = await engine.get_supported_tasks()
    app: FastAPI = build_app(args, tasks, engine.model_config)
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") in PUBLIC_PATHS]
    app.user_middleware.insert(0, Middleware(InternalKey, key=key, is_ready=is_ready))
    app.user_middleware.append(
        Middleware(AdapterAdmission, agent=agent, traffic=traffic, max_body_bytes=settings.max_body_bytes)
    )
    app.middleware_stack = app.build_middleware_stack()  # build_app has built one already, without our layers
    await app_state.init_app_state(engine, app.state, args, tasks)
    return app


def bind(host: str, port: int) -> socket.socket:
    """Take the port before the engine starts, so that a clash is known at once; 0 takes a free one.

    Raises OSError.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def address(settings: Settings, sock: socket.socket) -> str:
    """Return where the gateway reaches the server that listens on `sock`."""
    host, port = sock.getsockname()[:2]
    return settings.inference_url or f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_server(app: FastAPI) -> uvicorn.Server:
    """Make the HTTP server; whoever runs it decides when it stops, by `should_exit`."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=2
    )
    server: uvicorn.Server = NoSignalServer(config)
    app.state.server = server  # vLLM's error handlers end it when the engine has died
    return server


async def drain(traffic: Traffic) -> None:
    """Let no request in and wait for those inside, for a limited time."""
    traffic.closed = True
    try:
        async with asyncio.timeout(DRAIN_S):
            while traffic.running:
                await asyncio.sleep(0.05)
    except TimeoutError:
        log.warning("drain.cut_short", running=traffic.running)
