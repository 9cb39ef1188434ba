"""LitServe with dynamic batching: ``max_batch_size=64``, ``batch_timeout`` of 5 ms (its loop spins
when it is 0, and always waits it out when a batch is not full), one worker and one API server
process, ``fast_queue`` (ZeroMQ). The image is taken by a FastAPI dependency, as its own request
parsing knows JSON and forms only.
"""

import os
from typing import Annotated, Any

import litserve
import orjson
from endpoint import MAX_BATCH, PORT, Endpoint
from fastapi import Depends, Request, Response


async def image_bytes(request: Request) -> bytes:
    if request.headers["content-type"].startswith("multipart/"):
        form = await request.form()
        upload = form["image"]
        assert not isinstance(upload, str)
        return await upload.read()
    return await request.body()


class Api(litserve.LitAPI):
    """Decode, batch, score, encode."""

    def setup(self, device: str) -> None:
        self.endpoint = Endpoint()

    def decode_request(self, request: Annotated[bytes, Depends(image_bytes)]) -> Any:
        return self.endpoint.prepare(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: list[Any]) -> list[dict[str, Any]]:
        return self.endpoint.score(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> Response:
        return Response(orjson.dumps(output), media_type="application/json")


if __name__ == "__main__":
    wait_s = float(os.environ.get("PEER_WAIT_MS", "5")) / 1000
    api = Api(api_path="/score", max_batch_size=MAX_BATCH, batch_timeout=wait_s)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
