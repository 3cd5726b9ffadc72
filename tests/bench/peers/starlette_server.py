"""Starlette by hand: requests wait in a list, and each of two threads takes what is there."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from work import PATH, ROWS, WORKERS, generator

waiting: list[tuple[int, asyncio.Future[bytes]]] = []
idle = [generator() for _ in range(WORKERS)]
threads = ThreadPoolExecutor(WORKERS)
running: set[asyncio.Task[None]] = set()


async def run_batch() -> None:
    while waiting and idle:
        make, batch = idle.pop(), waiting[:ROWS]
        del waiting[:ROWS]
        files = await asyncio.get_running_loop().run_in_executor(threads, make, [seed for seed, _ in batch])
        idle.append(make)
        for (_, answer), file in zip(batch, files, strict=True):
            answer.set_result(file)


async def sample(request: Request) -> Response:
    seed = (await request.json())["seed"]
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    waiting.append((seed, answer))
    if idle:
        task = asyncio.create_task(run_batch())
        running.add(task)
        task.add_done_callback(running.discard)
    return Response(await answer, media_type="image/png")


if __name__ == "__main__":
    app = Starlette(routes=[Route(PATH, sample, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
