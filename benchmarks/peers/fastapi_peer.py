"""A plain FastAPI endpoint: no batching, each image scored in the event loop as it comes.

Scoring in the loop instead of in Starlette's thread pool is the faster choice on one core (no
hand-over between threads). uvicorn with uvloop and httptools, no access log.
"""

from typing import Any

import orjson
import uvicorn
from endpoint import PORT, Endpoint
from fastapi import FastAPI, Request, Response, UploadFile

app = FastAPI()
endpoint = Endpoint()


def _json(answer: dict[str, Any]) -> Response:
    return Response(orjson.dumps(answer), media_type="application/json")


@app.post("/score")
async def score(request: Request) -> Response:
    return _json(endpoint.answer(await request.body()))


@app.post("/form")
async def form(image: UploadFile) -> Response:
    return _json(endpoint.answer(await image.read()))


@app.get("/ready")
async def ready() -> str:
    return "yes"


if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning", access_log=False, loop="uvloop")
