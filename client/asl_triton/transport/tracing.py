"""Where a request belongs in a trace: OpenTelemetry's span of it, and the header that tells the server.

Nothing happens without `opentelemetry-api` (`pip install 'asl-triton[tracing]'`), and no span is recorded unless the
program around us has set a tracer up, or `opentelemetry-instrument asl-triton ...` has.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType


@contextmanager
def request_span(model: str, server: str, request_id: str) -> Iterator[dict[str, str]]:
    """A client's span for one request, below the caller's; gives the headers that make the server's spans its children.

    The header is W3C's `traceparent` (https://www.w3.org/TR/trace-context/), the one that Triton reads; none where
    there is no trace.
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
    """OpenTelemetry's API, or None where it is not installed. Imported with the first request: it takes its time."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace
