"""The proxy between two stand-in engines: what each one gets, what the client sees, what happens on bad days."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("aiohttp")

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from demo.proxy import USAGE_HEADER, Proxy, decode_request, prefill_request
from demo.replay import RequestFailed, complete

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StandIn:
    """An engine that records what it was asked and answers as it is told."""

    def __init__(self, handler: Handler) -> None:
        self.asked: list[dict[str, Any]] = []
        self._handler = handler

    async def serve(self) -> TestServer:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.asked.append(await request.json())
            return await self._handler(request)

        app = web.Application()
        app.router.add_post("/v1/completions", handle)
        server = TestServer(app)
        await server.start_server()
        return server


async def prefilled(_: web.Request) -> web.StreamResponse:
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    return web.json_response({"choices": [], "usage": usage, "kv_transfer_params": {"remote_engine_id": "p"}})


async def refused(_: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "no"}}, status=500)


def streaming(*events: dict[str, Any], finish: bool = True) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        await response.prepare(request)
        for event in events:
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        if not finish:
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(b"data: [DONE]\n\n")
        return response

    return handler


ANSWER = (
    {"choices": [{"token_ids": [7]}]},
    {"choices": [{"token_ids": [8]}]},
    {"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 1}}},
)


def through_proxy(prefill: Handler | None, decode: Handler, answer_tokens: int = 2) -> tuple[Any, StandIn, StandIn]:
    """The outcome of one request (an answer or the exception), and both stand-ins."""
    p, d = StandIn(prefill or refused), StandIn(decode)

    async def play() -> Any:
        p_server, d_server = await p.serve(), await d.serve()
        proxy = TestServer(Proxy(str(p_server.make_url("")), str(d_server.make_url(""))).application())
        if prefill is None:
            await p_server.close()
        await proxy.start_server()
        try:
            async with aiohttp.ClientSession() as session, asyncio.timeout(30):
                return await complete(session, str(proxy.make_url("")).rstrip("/"), [1, 2, 3], answer_tokens)
        except (RequestFailed, aiohttp.ClientError) as error:
            return error
        finally:
            for server in (proxy, p_server, d_server):
                await server.close()

    return asyncio.run(play()), p, d


def test_one_token_from_the_first_engine_then_the_request_as_it_came_to_the_second():
    answer, p, d = through_proxy(prefilled, streaming(*ANSWER))
    assert answer.tokens == [7, 8]
    assert (answer.cached_tokens, answer.prefill_cached_tokens) == (1, 2)
    (asked_p,), (asked_d,) = p.asked, d.asked
    assert (asked_p["max_tokens"], asked_p["stream"], asked_p["prompt"]) == (1, False, [1, 2, 3])
    assert "stream_options" not in asked_p
    assert asked_p["kv_transfer_params"]["do_remote_decode"] is True
    assert (asked_d["max_tokens"], asked_d["stream"], asked_d["prompt"]) == (2, True, [1, 2, 3])
    assert asked_d["kv_transfer_params"] == {"remote_engine_id": "p"}


@pytest.mark.parametrize("prefill", [refused, None], ids=["answers an error", "is not there"])
def test_request_is_answered_when_the_first_engine(prefill):
    answer, _, d = through_proxy(prefill, streaming(*ANSWER))
    assert answer.tokens == [7, 8]
    assert answer.prefill_cached_tokens is None
    assert "kv_transfer_params" not in d.asked[0]


def test_an_error_of_the_second_engine_reaches_the_client():
    error, _, _ = through_proxy(prefilled, refused)
    assert isinstance(error, RequestFailed)
    assert "status 500" in str(error)


def test_an_answer_that_breaks_off_is_an_error_at_the_client():
    error, _, _ = through_proxy(prefilled, streaming(*ANSWER[:1], finish=False))
    assert isinstance(error, RequestFailed | aiohttp.ClientError)


def test_an_answer_that_is_too_short_is_an_error_at_the_client():
    error, _, _ = through_proxy(prefilled, streaming(*ANSWER), answer_tokens=3)
    assert isinstance(error, RequestFailed)
    assert "2 tokens instead of 3" in str(error)


@pytest.mark.parametrize("body", ["no json", "[1]"])
def test_a_body_that_is_no_json_object_is_refused(body):
    async def play() -> int:
        server = TestServer(Proxy("http://127.0.0.1:9", "http://127.0.0.1:9").application())
        await server.start_server()
        try:
            async with aiohttp.ClientSession() as session:
                response = await session.post(server.make_url("/v1/completions"), data=body)
                return response.status
        finally:
            await server.close()

    assert asyncio.run(play()) == 400


def test_request_forms():
    body = {"prompt": "x", "max_tokens": 9, "max_completion_tokens": 9, "min_tokens": 4, "n": 2, "stream": True}
    assert prefill_request(body) == {
        "prompt": "x",
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "stream": False,
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
    }
    assert decode_request(body, None) == body
    assert decode_request(body, {"kv_transfer_params": None}) == body
    assert decode_request(body, {"kv_transfer_params": {"a": 1}}) == body | {"kv_transfer_params": {"a": 1}}
    assert USAGE_HEADER.islower()
