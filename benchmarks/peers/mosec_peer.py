"""mosec with dynamic batching: one worker process, ``max_batch_size=64``, ``max_wait_time`` of 1 ms
(its smallest; 10 is its default, and is waited out whenever a batch is not full). Its front is
written in Rust; workers get the body alone, so the boundary of a form is read off its first line.
"""

import os
from typing import Any

import orjson
from endpoint import MAX_BATCH, Endpoint, image_of
from mosec import Server, Worker


class Score(Worker):
    """One stage does it all."""

    def __init__(self) -> None:
        super().__init__()
        self.endpoint = Endpoint()

    def deserialize(self, data: bytes) -> Any:
        return self.endpoint.prepare(image_of(bytes(data)))

    def forward(self, data: list[Any]) -> list[dict[str, Any]]:
        return self.endpoint.score(data)

    def serialize(self, data: dict[str, Any]) -> bytes:
        return orjson.dumps(data)


if __name__ == "__main__":
    wait_ms = int(os.environ.get("PEER_WAIT_MS", "1"))
    server = Server()
    server.append_worker(Score, max_batch_size=MAX_BATCH, max_wait_time=wait_ms, route="/score")
    server.run()
