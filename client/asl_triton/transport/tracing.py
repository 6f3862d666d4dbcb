"""Traces requests: an OpenTelemetry span for each one, and the header that passes it on to the server.

Does nothing without `opentelemetry-api` (the extra `tracing`). Spans are recorded if the calling
program has set up a tracer, or under `opentelemetry-instrument asl-triton ...`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType


@contextmanager
def request_span(model: str, server: str, request_id: str) -> Iterator[dict[str, str]]:
    """Record a client span for one request as a child of the caller's span. Yields the headers that make the server's
    spans children of it.

    The header is W3C's `traceparent` (https://www.w3.org/TR/trace-context/), which Triton reads. Without a trace there
    are no headers.
    """
    trace = opentelemetry_trace()
    headers: dict[str, str] = {}
    if trace is None:
        yield headers
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    attributes = {"server.address": server, "asl_triton.model": model, "asl_triton.request_id": request_id}
    tracer = trace.get_tracer("asl_triton")
    with tracer.start_as_current_span(f"infer {model}", kind=trace.SpanKind.CLIENT, attributes=attributes):
        TraceContextTextMapPropagator().inject(headers)
        yield headers


@cache
def opentelemetry_trace() -> ModuleType | None:
    """Return OpenTelemetry's API, or None if it is not installed. The slow import happens on the first request."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace
