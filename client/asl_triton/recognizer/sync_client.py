"""The sync client, with the methods and arguments of `AsyncRecognizer` but without `await`."""

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.event_loop import iterate, run
from asl_triton.teaching.dictionary import SignDictionary

P = ParamSpec("P")
T = TypeVar("T")


def _with_arguments_of(
    make: Callable[P, AsyncRecognizer],
) -> Callable[[Callable[..., None]], Callable[Concatenate["Recognizer", P], None]]:
    """Give a method the signature of a callable that makes an AsyncRecognizer, for readers and type checkers."""
    return functools.wraps(make.__init__)


def _run_sync(
    method: Callable[Concatenate[AsyncRecognizer, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Recognizer", P], T]:
    def wrapper(self: "Recognizer", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(self.asynchronous, *args, **kwargs))

    functools.update_wrapper(wrapper, method)
    return wrapper


def _iterate_sync(
    method: Callable[Concatenate[AsyncRecognizer, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate["Recognizer", P], Iterator[T]]:
    def wrapper(self: "Recognizer", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return iterate(method(self.asynchronous, *args, **kwargs))

    functools.update_wrapper(wrapper, method)
    return wrapper


class Recognizer:
    """`AsyncRecognizer` for code that does not use asyncio. It may be called from several threads.

    Callbacks such as `on_segment` are called in another thread. Closing or dropping the iterator of `steps` stops the
    decoding. `asynchronous` is the underlying recognizer. Its coroutines must run on `background_loop`, so pass them to
    `run`.

    Examples:
        >>> with Recognizer("localhost:8001") as recognizer:
        ...     recognition = recognizer.recognize("clip.mp4", top_k=10)
    """

    @_with_arguments_of(AsyncRecognizer)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.asynchronous = AsyncRecognizer(*args, **kwargs)

    model = _run_sync(AsyncRecognizer.model)
    embed = _run_sync(AsyncRecognizer.embed)
    recognize = _run_sync(AsyncRecognizer.recognize)
    recognize_with_curves = _run_sync(AsyncRecognizer.recognize_with_curves)
    crops = _run_sync(AsyncRecognizer.crops)
    steps = _iterate_sync(AsyncRecognizer.steps)
    timeline = _run_sync(AsyncRecognizer.timeline)
    close = _run_sync(AsyncRecognizer.close)

    def with_dictionary(self, dictionary: SignDictionary, *, with_vocabulary: bool = False) -> "Recognizer":
        """Return a recognizer of taught signs over the same connection and decoders: close this one, not that one.

        Raises:
            AslTritonError: this recognizer sends video files.
        """
        taught = Recognizer.__new__(Recognizer)
        taught.asynchronous = self.asynchronous.with_dictionary(dictionary, with_vocabulary=with_vocabulary)
        return taught

    def __enter__(self) -> "Recognizer":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
