"""A small prefill/decode proxy for engines that share a pool.

usage: python -m demo.proxy --prefill URL --decode URL [--host 127.0.0.1] [--port 8000]

A completion request goes to the prefilling engine first, for one token: that computes the prompt and puts its blocks
into the pool. Then the request goes to the decoding engine as it came, and its answer is streamed back. The
`kv_transfer_params` of the first answer are relayed to the second request, for connectors that hand KV over directly.
When the prefilling engine fails, the decoding one computes the prompt itself: a pool is never needed for an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

PREFILL_TIMEOUT_S = 120.0
FIRST_BYTE_TIMEOUT_S = 120.0  # also the longest silence within an answer
CONNECT_TIMEOUT_S = 5.0
BODY_BYTES_MAX = 64 << 20
USAGE_HEADER = "x-prefill-usage"
ROUTES = ("/v1/completions", "/v1/chat/completions")
# What a request for one token must not carry along.
NOT_FOR_PREFILL = ("min_tokens", "stream_options", "n", "best_of")

log = logging.getLogger("demo.proxy")


class PrefillFailed(Exception):
    """The prefilling engine did not answer as it should."""


def prefill_request(body: dict[str, Any]) -> dict[str, Any]:
    """The same request for one token, not streamed, that asks for the blocks to be handed on."""
    request = {name: value for name, value in body.items() if name not in NOT_FOR_PREFILL}
    request |= {"max_tokens": 1, "stream": False}
    if "max_completion_tokens" in body:
        request["max_completion_tokens"] = 1
    request.setdefault("kv_transfer_params", {"do_remote_decode": True, "do_remote_prefill": False})
    return request


def decode_request(body: dict[str, Any], prefilled: dict[str, Any] | None) -> dict[str, Any]:
    """The request as it came, with what the prefilling engine says about where the blocks are."""
    params = (prefilled or {}).get("kv_transfer_params")
    return body | {"kv_transfer_params": params} if params else dict(body)


class Proxy:
    def __init__(self, prefill_url: str, decode_url: str) -> None:
        self._prefill_url = prefill_url.rstrip("/")
        self._decode_url = decode_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.cleanup_ctx.append(self._client)
        app.router.add_get("/health", self._health)
        for route in ROUTES:
            app.router.add_post(route, self._complete)
        return app

    async def _client(self, _: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=FIRST_BYTE_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            self._session = session
            yield

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the proxy is not running")
        return self._session

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
        except ValueError:
            return web.json_response({"error": {"message": "the body is not JSON"}}, status=400)
        if not isinstance(body, dict):
            return web.json_response({"error": {"message": "the body is not a JSON object"}}, status=400)
        prefilled: dict[str, Any] | None = None
        try:
            prefilled = await self._prefill(request.path, body)
        except (PrefillFailed, aiohttp.ClientError, TimeoutError) as error:
            log.warning("prefill failed, decoding without it: %s", error or type(error).__name__)
        try:
            return await self._decode(request, decode_request(body, prefilled), (prefilled or {}).get("usage"))
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            log.error("decode failed: %s", error or type(error).__name__)
            return web.json_response({"error": {"message": "the decoding engine does not answer"}}, status=502)

    async def _prefill(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with (
            asyncio.timeout(PREFILL_TIMEOUT_S),
            self._http.post(self._prefill_url + path, json=prefill_request(body)) as answer,
        ):
            text = await answer.text()
            if answer.status != 200:
                raise PrefillFailed(f"status {answer.status}: {text[:300]}")
            parsed = json.loads(text)
            if not isinstance(parsed, dict):
                raise PrefillFailed(f"not a JSON object: {text[:300]}")
            return parsed

    async def _decode(self, request: web.Request, body: dict[str, Any], usage: object) -> web.StreamResponse:
        async with self._http.post(self._decode_url + request.path, json=body) as answer:
            out = web.StreamResponse(status=answer.status)
            out.content_type = answer.content_type
            if usage is not None:
                out.headers[USAGE_HEADER] = json.dumps(usage)
            await out.prepare(request)
            # From here on the status is sent: when the engine goes away, the client must see a broken answer.
            try:
                async for piece in answer.content.iter_any():
                    await out.write(piece)
            except (aiohttp.ClientError, TimeoutError):
                log.exception("the decoding engine stopped within an answer")
                if request.transport is not None:
                    request.transport.close()
                return out
            await out.write_eof()
            return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.proxy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prefill", required=True, metavar="URL")
    parser.add_argument("--decode", required=True, metavar="URL")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    app = Proxy(arguments.prefill, arguments.decode).application()
    web.run_app(app, host=arguments.host, port=arguments.port, access_log=None, print=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
