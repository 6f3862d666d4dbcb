"""Limits on visitors' events in Gradio's queue.

Gradio queues any number of events, keeps every answer until it is fetched, and accepts strings of any length, which it
repeats in answers and keeps in its logs.
"""

import time
from dataclasses import dataclass
from typing import Any, cast

import gradio as gr

from asl_triton_ui.guide import guide_recording
from asl_triton_ui.state.request_queue import find_visitor

MAX_SESSION_CHARS = 100  # in a page's session name, which the page chooses
MAX_TEXT_CHARS = 5_000  # in a string of an event, such as a path; a live picture has its own limit
MAX_GUIDE_CHARS = 100_000  # in the camera guide's small picture, in base64; a browser sends about 15,000
MAX_EVENTS = 128  # per visitor: waiting, running, or with an answer that was not fetched
MAX_UNREAD = 200  # parts of one answer
KEEP_ANSWERS_S = 600.0


@dataclass(frozen=True)
class KnownEvent:
    """An accepted event."""

    name: str
    session: str
    visitor: str
    is_stream: bool
    came_s: float


class EventLimits:
    """Stands in front of the queue of `blocks` and refuses events beyond the limits. Use it in one event loop.

    Up to `max_streams` cameras may stream at once; each holds a place in the queue while it streams.
    """

    def __init__(self, blocks: gr.Blocks, max_streams: int) -> None:
        self._queue = cast(Any, blocks._queue)
        self._max_streams = max_streams
        self._events: list[KnownEvent] = []
        self._push, self._send_message = self._queue.push, self._queue.send_message
        self._queue.push, self._queue.send_message = self.push, self.send_message

    async def push(self, body: Any, request: Any, username: str | None) -> tuple[bool, Any, str]:
        """Queue an event or return why it was refused, as Gradio's own `push` does."""
        fn = self._queue.blocks.fns.get(body.fn_index)
        is_stream = fn is not None and fn.connection == "stream"
        visitor = find_visitor(request, username)
        if fn is None or len(body.session_hash or "") > MAX_SESSION_CHARS:
            return False, "this page does not send such a request", "error"
        most_chars = MAX_GUIDE_CHARS if fn.name == guide_recording.__name__ else MAX_TEXT_CHARS
        if find_longest_text(body.data[1:] if is_stream else body.data) > most_chars:
            return False, f"a text in this request has more than {most_chars:,} characters", "error"
        self._forget()
        if is_stream and sum(event.is_stream for event in self._events if self._is_open(event)) >= self._max_streams:
            return False, "too many cameras are on: try again in a minute", "queue_full"
        if sum(event.visitor == visitor for event in self._events) >= MAX_EVENTS:
            return False, "too many of your requests are still open: try again in a few minutes", "queue_full"
        done: tuple[bool, Any, str] = await self._push(body=body, request=request, username=username)
        if done[0]:
            self._events.append(KnownEvent(done[1], body.session_hash, visitor, is_stream, time.monotonic()))
        return done

    def send_message(self, event: Any, event_message: Any) -> None:
        """Keep a part of an answer for its visitor, and end the event if nobody reads its answer."""
        messages = self._queue.pending_messages_per_session.get(event.session_hash)
        if messages is None or messages.qsize() >= MAX_UNREAD:
            event.alive = False
        else:
            self._send_message(event, event_message)

    def _is_open(self, event: KnownEvent) -> bool:
        """Return whether an event is waiting or running."""
        return event.name in self._queue.event_ids_to_events

    def _forget(self) -> None:
        """Forget events whose answers were fetched, and answers that nobody fetched within ten minutes."""
        unfetched: dict[str, set[str]] = self._queue.pending_event_ids_session
        kept = []
        for event in self._events:
            names = unfetched.get(event.session, set())
            is_old = time.monotonic() - event.came_s > KEEP_ANSWERS_S
            if self._is_open(event) or (event.name in names and not is_old):
                kept.append(event)
                continue
            names.discard(event.name)
            if not names:
                unfetched.pop(event.session, None)
                self._queue.pending_messages_per_session.pop(event.session, None)
        self._events = kept


def find_longest_text(value: Any) -> int:
    """Return the length of the longest string in a JSON value."""
    longest, rest = 0, [value]
    while rest:
        part = rest.pop()
        if isinstance(part, str):
            longest = max(longest, len(part))
        elif isinstance(part, dict):
            rest += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            rest += part
    return longest
