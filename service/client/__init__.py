"""Calling the service from Python: ``Client``, and ``AsyncClient`` for asyncio.

    with Client("http://127.0.0.1:8000") as client:
        for result in client.score_files(["a.png", "b.png"], map="float32"):
            print(result.file, result.score, result.decision)

Needs the extra ``client`` (httpx) and nothing of the service: neither onnxruntime nor a web
framework is loaded.

Modules: ``calls`` what is asked; ``reading`` how answers are read, ``answers`` their types;
``uploads`` files and how many go into a request; ``retries`` when a call is sent again;
``failures`` what is raised; ``session`` what a client was told; ``blocking`` and ``asynchronous``
the two clients, which only send.
"""

from service.client.answers import (
    Answer,
    Event,
    FailedFile,
    FeatureShare,
    Feedback,
    ImageResult,
    ImageScore,
    Model,
    Neighbour,
    Readiness,
    Region,
    SeriesScores,
    StreamScores,
    StreamState,
    VectorScore,
    VectorScores,
    WindowScore,
)
from service.client.asynchronous import AsyncClient
from service.client.blocking import Client
from service.client.failures import (
    ClientError,
    FieldProblem,
    NoAnswer,
    OutOfTime,
    ServiceProblem,
    UnexpectedAnswer,
)
from service.client.retries import Retries

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "Event",
    "FailedFile",
    "FeatureShare",
    "Feedback",
    "FieldProblem",
    "ImageResult",
    "ImageScore",
    "Model",
    "Neighbour",
    "NoAnswer",
    "OutOfTime",
    "Readiness",
    "Region",
    "Retries",
    "SeriesScores",
    "ServiceProblem",
    "StreamScores",
    "StreamState",
    "UnexpectedAnswer",
    "VectorScore",
    "VectorScores",
    "WindowScore",
]
