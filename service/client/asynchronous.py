"""``AsyncClient``: the same methods, to be awaited."""

import asyncio
from asyncio import sleep
from collections.abc import Iterable, Sequence
from typing import Self, TypeVar, Unpack

import httpx
import numpy as np

from service.client import calls
from service.client.answers import (
    Feedback,
    ImageResult,
    ImageScore,
    Label,
    Model,
    Readiness,
    SeriesScores,
    StreamScores,
    StreamState,
    VectorScores,
)
from service.client.calls import (
    Call,
    CallOptions,
    CsvInput,
    ImageOptions,
    RowsInput,
    SeriesOptions,
    Stamp,
    StreamOptions,
    VectorOptions,
    VectorsInput,
)
from service.client.session import Batch, ClientOptions, Session, only
from service.client.uploads import FileInput, Upload, array_uploads, uploads_of

T = TypeVar("T")


class AsyncClient:
    """``Client`` for asyncio: the same methods, to be awaited."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """A client; its connections are made when needed and kept until it is closed.

        Args:
            base_url: of the service; default: ``ANOMALY_URL``, else ``http://127.0.0.1:8000``.
            transport: of httpx, in the place of its own: a proxy, a socket file, a test.
            options: ``ClientOptions``.
        """
        self._session = Session(base_url, **options)
        self._http = httpx.AsyncClient(transport=transport, **self._session.http_options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """The connections are closed."""
        await self._http.aclose()

    async def score_files(
        self, files: FileInput | Iterable[FileInput], **options: Unpack[ImageOptions]
    ) -> list[ImageResult]:
        """See ``Client.score_files``; the requests of many files run side by side."""
        return await self._score(await asyncio.to_thread(uploads_of, files), options)

    async def score_file(self, file: FileInput, **options: Unpack[ImageOptions]) -> ImageScore:
        """See ``Client.score_file``."""
        return only(await self._score(await asyncio.to_thread(uploads_of, [file]), options))

    async def score_arrays(
        self, images: np.ndarray | Sequence[np.ndarray], **options: Unpack[ImageOptions]
    ) -> list[ImageResult]:
        """See ``Client.score_arrays``."""
        return await self._score(await asyncio.to_thread(array_uploads, images), options)

    async def score_csv(self, csv: CsvInput, **options: Unpack[SeriesOptions]) -> SeriesScores:
        """See ``Client.score_csv``."""
        return await self._send(await asyncio.to_thread(calls.csv_call, csv, options))

    async def score_rows(
        self,
        rows: RowsInput,
        columns: Sequence[str] | None = None,
        timestamps: Sequence[Stamp] | np.ndarray | None = None,
        **options: Unpack[SeriesOptions],
    ) -> SeriesScores:
        """See ``Client.score_rows``."""
        return await self._send(calls.rows_call(rows, columns, timestamps, options))

    async def score_vectors(
        self,
        vectors: VectorsInput,
        columns: Sequence[str] | None = None,
        **options: Unpack[VectorOptions],
    ) -> VectorScores:
        """The scores of vectors [N, D], every value finite. Without ``columns`` their features are
        in the model's order.
        """
        return await self._send(calls.vectors_call(vectors, columns, options))

    async def append_rows(
        self,
        stream: str,
        rows: RowsInput,
        columns: Sequence[str] | None = None,
        timestamps: Sequence[Stamp] | np.ndarray | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[StreamOptions],
    ) -> StreamScores:
        """See ``Client.append_rows``."""
        return await self._send(
            calls.append_call(stream, rows, columns, timestamps, idempotency_key, options)
        )

    async def stream(self, stream: str, **options: Unpack[CallOptions]) -> StreamState:
        """See ``Client.stream``."""
        return await self._send(calls.stream_call(stream, options))

    async def delete_stream(self, stream: str, **options: Unpack[CallOptions]) -> None:
        """See ``Client.delete_stream``."""
        await self._send(calls.delete_stream_call(stream, options))

    async def feedback(
        self,
        request_id: str,
        label: Label,
        index: int = 0,
        comment: str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Feedback:
        """See ``Client.feedback``."""
        return await self._send(calls.feedback_call(request_id, label, index, comment, timeout_s))

    async def models(self, **options: Unpack[CallOptions]) -> list[Model]:
        """See ``Client.models``."""
        return await self._send(calls.models_call(options))

    async def ready(self, **options: Unpack[CallOptions]) -> Readiness:
        """See ``Client.ready``."""
        return await self._send(calls.ready_call(options))

    async def wait_until_ready(self, **options: Unpack[CallOptions]) -> Readiness:
        """See ``Client.wait_until_ready``."""
        return await self._send(calls.ready_call(options, patient=True))

    async def _score(self, uploads: list[Upload], options: ImageOptions) -> list[ImageResult]:
        turns = asyncio.Semaphore(self._session.concurrency)

        async def in_turn(batch: Batch) -> list[ImageResult]:
            async with turns:
                return await self._score_batch(batch)

        tasks = [asyncio.ensure_future(in_turn(b)) for b in self._session.batches(uploads, options)]
        try:
            return [result for results in await asyncio.gather(*tasks) for result in results]
        finally:
            for task in tasks:
                task.cancel()  # of those still running, where one has failed
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _score_batch(self, batch: Batch) -> list[ImageResult]:
        results = await self._send(await asyncio.to_thread(batch.call))
        if results is not None:
            return results
        return [result for half in batch.halves() for result in await self._score_batch(half)]

    async def _send(self, call: Call[T]) -> T:
        attempts = self._session.attempts(call)
        while True:
            request = attempts.request()
            try:
                response = await self._http.request(**request)
            except httpx.RequestError as error:
                wait_s = attempts.failed(error)
            else:
                again_s = attempts.answered(response)
                if again_s is None:
                    return call.read(response)
                wait_s = again_s
            await sleep(wait_s)
