"""The trace of the caller continues in the server: checks the `traceparent` that the server receives."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from asl_triton.errors import ServerError
from asl_triton.recognizer.sync_client import Recognizer
from tests.client import videos
from tests.client.asking import infer_logits
from tests.client.grpc_server import Triton, serving


@pytest.fixture
def triton() -> Iterator[Triton]:
    with serving(Triton()) as served:
        yield served


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans recorded during a test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # its setter works only once per process
    return exporter


def test_request_span_is_the_parent_of_the_servers_span(triton: Triton, spans: InMemorySpanExporter) -> None:
    infer_logits(triton.address)
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("infer signs", trace.SpanKind.CLIENT)
    assert span.attributes is not None and span.context is not None
    assert span.attributes["server.address"] == triton.address
    assert len(str(span.attributes["asl_triton.request_id"])) == 32
    assert [seen["traceparent"] for seen in triton.asked] == [
        f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
    ]


def test_callers_span_is_the_parent_across_threads(triton: Triton, spans: InMemorySpanExporter, tmp_path: Path) -> None:
    clip = videos.clip(tmp_path / "clip.mp4", num_frames=9)
    with trace.get_tracer("test").start_as_current_span("a visitor") as visit, Recognizer(triton.address) as recognizer:
        recognizer.recognize(clip)
    requests = [span for span in spans.get_finished_spans() if span.name == "infer signs"]
    assert requests and all(span.parent == visit.get_span_context() for span in requests)


def test_trace_continues_with_only_the_opentelemetry_api(triton: Triton) -> None:
    parent = SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    with trace.use_span(NonRecordingSpan(parent)):
        infer_logits(triton.address)
    infer_logits(triton.address)
    assert [seen.get("traceparent") for seen in triton.asked] == [f"00-{0xABC:032x}-{0xDEF:016x}-01", None]


def test_failure_is_recorded_in_the_span(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ServerError, match="no server answers"):
        infer_logits("127.0.0.1:1")
    (span,) = spans.get_finished_spans()
    assert span.status.status_code == trace.StatusCode.ERROR


def test_tracing_without_opentelemetry_does_nothing() -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"  # as if it were not installed
        "from asl_triton.transport.tracing import request_span\n"
        "with request_span('signs', 'here:1', 'c0ffee') as headers: print(headers)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{}\n", "")
