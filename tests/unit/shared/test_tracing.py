"""Which collector is meant, and what a span is while tracing is off."""

from __future__ import annotations

import pytest

from shared import tracing


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/in"},
            "http://t/in",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "http://c/v1/traces",
        ),
    ],
)  # fmt: skip
def test_the_standard_variables_name_the_collector(environ: dict[str, str], expected: str | None) -> None:
    assert tracing.endpoint(environ) == expected


def test_off_it_gives_no_headers_and_no_ids() -> None:
    assert not tracing.is_on()
    with tracing.span("x", parent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", a=1) as span:
        assert span.headers == {} == tracing.headers()
        assert tracing.traceparent() == "" and tracing.current_ids() is None
    begun = tracing.begin("y")
    begun.fail("why")
    begun.end()
