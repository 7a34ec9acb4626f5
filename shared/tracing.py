"""Traces by OpenTelemetry: on where the standard variables name a collector, else nothing is imported or done.

    OTEL_EXPORTER_OTLP_ENDPOINT         the collector's address, such as http://127.0.0.1:4318
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT  the full address for traces, instead

Spans go out as OTLP over HTTP, by a thread of the SDK's; the SDK's other variables (headers, sampler, service name)
count as it documents them. The provider is not made OpenTelemetry's global one: in the inference server that is vLLM's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attribute = str | int | float | bool

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
SPOKEN = "http/protobuf"
"""The one protocol that is spoken here, of those that OTEL_EXPORTER_OTLP_PROTOCOL may name."""
FLUSH_S = 2.0

log = structlog.get_logger()


class _Started:
    """What start() has made, and for which process: a forked one has none of its parent's threads."""

    provider: TracerProvider | None = None
    tracer: Tracer | None = None
    pid = 0


def endpoint(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the full address that traces go to, None where there are none or only by another protocol."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    if _protocol(environ) != SPOKEN:
        return None
    if full := environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return full
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{base.rstrip('/')}/v1/traces" if base else None


def start(service: str) -> None:
    """Begin to trace as selftune-`service`, if a collector is named; once in a process."""
    url = endpoint()
    if (protocol := _protocol(os.environ)) != SPOKEN:
        log.warning("tracing.off", reason=f"only {SPOKEN} is spoken here, not {protocol}")
    if url is None or _Started.pid == os.getpid():
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME") or f"selftune-{service}"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    _Started.provider, _Started.tracer, _Started.pid = provider, provider.get_tracer("selftune"), os.getpid()
    log.info("tracing.started", endpoint=url, name=name)


def _protocol(environ: Mapping[str, str]) -> str:
    named = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    return named or SPOKEN


def is_on() -> bool:
    return _Started.tracer is not None


def flush() -> None:
    """Send what has ended, for at most FLUSH_S: a collector that hangs holds nobody up."""
    if _Started.provider is not None and _Started.pid == os.getpid():
        sending = threading.Thread(target=_Started.provider.force_flush, daemon=True)
        sending.start()
        sending.join(FLUSH_S)


class Span:
    """A span that somebody ends; this one is nothing, which is what there is while tracing is off."""

    @property
    def headers(self) -> dict[str, str]:
        """W3C's headers for a request that is made for it."""
        return {}

    def note(self, **attributes: Attribute) -> None:
        """Add attributes."""

    def rename(self, name: str) -> None: ...

    def fail(self, reason: str) -> None:
        """Mark it as failed."""

    def end(self) -> None: ...


class _Real(Span):
    def __init__(self, span: Any) -> None:
        self.span = span

    @property
    def headers(self) -> dict[str, str]:
        from opentelemetry.trace import set_span_in_context

        return _headers(set_span_in_context(self.span))

    def note(self, **attributes: Attribute) -> None:
        self.span.set_attributes(_named(attributes))

    def rename(self, name: str) -> None:
        self.span.update_name(name)

    def fail(self, reason: str) -> None:
        from opentelemetry.trace import StatusCode

        self.span.set_status(StatusCode.ERROR, reason)

    def end(self) -> None:
        self.span.end()


_NOTHING = Span()


def begin(
    name: str, *, parent: Mapping[str, str] | str | None = None, kind: Kind = "internal", **attributes: Attribute
) -> Span:
    """Begin a span that is not the current one; whoever begins it ends it.

    `parent` is a `traceparent`, or headers that may have one; without, the current span. Attributes are named
    selftune.…
    """
    if _Started.tracer is None:
        return _NOTHING
    from opentelemetry.trace import SpanKind

    context = None if parent is None else _context(parent)
    kinds = SpanKind[kind.upper()]
    return _Real(_Started.tracer.start_span(name, context=context, kind=kinds, attributes=_named(attributes)))


@contextmanager
def span(
    name: str, *, parent: Mapping[str, str] | str | None = None, kind: Kind = "internal", **attributes: Attribute
) -> Iterator[Span]:
    """Have a span as the current one; an exception that leaves the block marks it as failed, a cancellation does not.

    Arguments as for begin().
    """
    if _Started.tracer is None:
        yield _NOTHING
        return
    from opentelemetry.trace import use_span

    begun = begin(name, parent=parent, kind=kind, **attributes)
    assert isinstance(begun, _Real)
    with use_span(begun.span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield begun
        except Exception as error:
            begun.fail(type(error).__name__)
            raise


def traceparent() -> str:
    """Return the current span in W3C's form, for a record or a message; empty where there is none."""
    return headers().get(TRACEPARENT, "")


def headers() -> dict[str, str]:
    """Return W3C's headers of the current span; none where there is none."""
    return {} if _Started.tracer is None else _headers(None)


def current_ids() -> tuple[str, str] | None:
    """Return the ids of the current trace and span in hexadecimal, for log lines."""
    if _Started.tracer is None:
        return None
    from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

    context = get_current_span().get_span_context()
    return (format_trace_id(context.trace_id), format_span_id(context.span_id)) if context.is_valid else None


def _headers(context: Any) -> dict[str, str]:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context)
    return carrier


def _context(parent: Mapping[str, str] | str) -> Any:
    """Read a parent; one that is malformed is none, and begins a new trace."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {TRACEPARENT: parent} if isinstance(parent, str) else parent
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"selftune.{name}": value for name, value in attributes.items()}
