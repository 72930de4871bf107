"""medsora.app.gate: which requests the page answers at all, and how many connections at a time."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any

import pytest

from medsora.app import gate
from medsora.app.gate import MAX_BODY_BYTES, MAX_UPLOAD_BYTES, TOO_MANY, Gate, limited
from tests.support.patience import PATIENCE_S


def answer_to(headers: dict[str, str], kind: str = "http", names: tuple[str, ...] = ()) -> list[Any]:
    """Return what a page behind the gate says to a request, or what the gate says in its place."""
    responses: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send("the page")

    async def send(message: Any) -> None:
        responses.append(message)

    scope = {"type": kind, "headers": [(key.encode(), value.encode()) for key, value in headers.items()]}
    asyncio.run(Gate(page, names)(scope, None, send))
    return responses


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "10.0.0.3", "page.example:80", "::1"],
)
def test_an_address_and_a_known_name_are_answered(host: str) -> None:
    assert answer_to({"host": host}, names=("page.example",)) == ["the page"]


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"host": "evil.example:7860"}, 421, "does not answer under that name"),
        ({"host": "127.0.0.1.evil.example"}, 421, "does not answer under that name"),
        ({"host": "localhost.evil.example"}, 421, "does not answer under that name"),
        ({}, 421, "does not answer under that name"),
        ({"host": "localhost:7860", "origin": "http://evil.example"}, 403, "other web pages"),
        ({"host": "localhost:7860", "origin": "http://localhost:8000"}, 403, "other web pages"),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"}, 403, "other web pages"),
        ({"host": "localhost:7860", "origin": "null"}, 403, "other web pages"),
        ({"host": "localhost", "content-length": str(400 * 10**6)}, 413, "at most 20 MB"),
        ({"host": "localhost", "content-length": "x"}, 411, "Content-Length"),
        ({"host": "localhost", "transfer-encoding": "chunked"}, 411, "Content-Length"),
    ],
)
def test_others_are_refused_in_one_line(headers: dict[str, str], status: int, words: str) -> None:
    start, body = answer_to(headers, names=("127.0.0.1",))
    assert start["status"] == status
    assert words in body["body"].decode()
    assert body["body"].count(b"\n") == 1
    assert answer_to(headers, "websocket")[0]["type"] == "websocket.close"


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:7860", "http://localhost:7860"),
        ("10.0.0.3:7860", "http://10.0.0.3:7860"),
        ("127.0.0.1:7860", "https://page.example"),  # behind a proxy
    ],
)
def test_what_the_page_itself_sends_is_answered(host: str, origin: str) -> None:
    assert answer_to({"host": host, "origin": origin}, names=("page.example",)) == ["the page"]


def test_what_is_no_request_and_an_upload_within_the_limit_pass() -> None:
    assert answer_to({}, "lifespan") == ["the page"]
    assert answer_to({"host": "localhost", "content-length": str(MAX_UPLOAD_BYTES)}) == ["the page"]
    assert MAX_UPLOAD_BYTES < MAX_BODY_BYTES < 1.1 * MAX_UPLOAD_BYTES


def test_many_uploads_do_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_UPLOADED_BYTES", 1000)
    statuses: list[int] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        statuses.append(200)

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    guarded = Gate(page)

    def post(announced: int, sent: int, kind: str = "multipart/form-data; boundary=x") -> int:
        async def receive() -> Any:
            return {"type": "http.request", "body": b"." * sent, "more_body": False}

        headers = {"host": "localhost", "content-length": str(announced), "content-type": kind}
        pairs = [(key.encode(), value.encode()) for key, value in headers.items()]
        asyncio.run(guarded({"type": "http", "headers": pairs}, receive, send))
        return statuses[-1]

    assert [post(900, 0) for _ in range(20)] == [200] * 20  # nothing of them came
    assert [post(10, 10) for _ in range(95)] == [200] * 95  # small ones count, too
    assert post(100, 100) == 507
    assert post(100, 100, "application/json") == 200  # is not kept on the disk
    later = gate.time.monotonic() + gate.KEPT_S + 1
    monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: later))
    assert post(100, 100) == 200


@contextmanager
def serving(answers_after_s: float = 0.0) -> Iterator[tuple[str, int]]:
    """Serve an empty page in a thread, with limited connections; give its address."""
    uvicorn = pytest.importorskip("uvicorn", reason="it comes with Gradio (pip install 'medsora[app]')")

    async def page(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            while (await receive()).get("more_body"):
                pass
            await asyncio.sleep(answers_after_s)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"the page"})

    config = uvicorn.Config(page, log_level="warning")
    config.load()
    config.http_protocol_class = limited(config.http_protocol_class)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def answer(place: tuple[str, int]) -> tuple[int, bytes]:
    connection = HTTPConnection(*place, timeout=PATIENCE_S)
    connection.request("GET", "/", headers={"Connection": "close"})
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_connections_too_many_are_refused_in_one_line_until_others_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "MAX_CONNECTIONS", 3)
    with serving() as place:
        assert answer(place) == (200, b"the page")
        idle = [socket.create_connection(place) for _ in range(3)]
        assert [answer(place) for _ in range(20)] == [(503, TOO_MANY)] * 20
        assert TOO_MANY.count(b"\n") == 1
        idle.pop().close()
        assert answer(place) == (200, b"the page")
        for connection in idle:
            connection.close()


def test_a_connection_that_asks_for_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_SILENCE_S", 0.2)
    with serving() as place, socket.create_connection(place, PATIENCE_S) as silent:
        with suppress(ConnectionResetError):
            assert silent.recv(1) == b""
        assert answer(place) == (200, b"the page")


@pytest.mark.parametrize(
    "begun",
    [b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na"],
    ids=["first byte", "half a head", "half a body"],
)
@pytest.mark.parametrize(
    "before", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "second request"]
)
def test_a_request_that_never_ends_does_not_keep_its_connection(
    begun: bytes, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else several hundred connections with one byte each would block the page."""
    monkeypatch.setattr(gate, "MAX_SILENCE_S", 1.5)
    monkeypatch.setattr(gate, "MAX_CONNECTIONS", 1)
    with serving() as place, socket.create_connection(place, PATIENCE_S) as slow:
        if before:
            slow.sendall(before)
            reply = b""
            while b"the page" not in reply:
                reply += (received := slow.recv(2**16))
                assert received
        slow.sendall(begun)
        assert answer(place)[0] == 503
        with suppress(ConnectionResetError):
            while slow.recv(2**16):
                pass
        assert answer(place) == (200, b"the page")


def test_a_slow_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_SILENCE_S", 1.0)
    with serving(answers_after_s=2.0) as place:
        assert answer(place) == (200, b"the page")
