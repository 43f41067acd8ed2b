"""An HTTP server that behaves like an engine with a pool, without a model.

usage: stand_in_engine.py PORT POOL_FOLDER [--forgetful] [--odd] [--die-after N]

Its tokens are a hash of the prompt, so that equal prompts get equal answers. The pool is a folder with one file for
each known prefix; "-" is no pool. `--forgetful` finds nothing, `--odd` answers with other tokens, `--die-after` ends
the process at that request.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

from aiohttp import web

BLOCK_TOKENS = 32


class StandIn:
    def __init__(self, given: argparse.Namespace) -> None:
        self.pool = None if given.pool == "-" else Path(given.pool)
        self.given = given
        self.requests = 0
        self.computed = 0
        self.loaded = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.given.die_after and self.requests >= self.given.die_after:
            print("stand-in engine: ending as it was told", file=sys.stderr, flush=True)
            os._exit(7)
        body = await request.json()
        prompt = body["prompt"]
        cached = self.known(prompt)
        self.loaded += cached
        self.computed += len(prompt) - cached
        answer = [(byte + self.given.odd) % 256 for byte in hashlib.sha256(repr(prompt).encode()).digest() * 8]
        answer = answer[: body["max_tokens"]]
        self.learn([*prompt, *answer][:-1])
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": cached}}
        if not body["stream"]:
            return web.json_response({"choices": [{"token_ids": answer}], "usage": usage})
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        await response.prepare(request)
        for event in ({"choices": [{"token_ids": answer}]}, {"choices": [], "usage": usage}):
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    def files(self, tokens: list[int]) -> list[Path]:
        assert self.pool is not None
        ends = range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS)
        return [self.pool / hashlib.sha256(repr(tokens[:end]).encode()).hexdigest() for end in ends]

    def known(self, prompt: list[int]) -> int:
        if self.pool is None or self.given.forgetful:
            return 0
        count = 0
        for file in self.files(prompt[:-1]):
            if not file.exists():
                break
            count += BLOCK_TOKENS
        return count

    def learn(self, tokens: list[int]) -> None:
        if self.pool is not None:
            for file in self.files(tokens):
                file.touch()

    async def metrics(self, _: web.Request) -> web.Response:
        name = "vllm:prompt_tokens_by_source_total"
        return web.Response(
            text=f'{name}{{source="local_compute"}} {self.computed}\n'
            f'{name}{{source="external_kv_transfer"}} {self.loaded}\n'
        )

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("pool")
    parser.add_argument("--forgetful", action="store_true")
    parser.add_argument("--odd", type=int, default=0)
    parser.add_argument("--die-after", type=int, default=0)
    engine = StandIn(parser.parse_args())
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/completions", engine.complete)
    app.router.add_get("/metrics", engine.metrics)
    app.router.add_get("/health", engine.health)
    web.run_app(app, host="127.0.0.1", port=engine.given.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
