"""``Client``: a call returns when its answer is there."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import sleep
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


class Client:
    """Calls the service and waits for the answer; safe to share by threads.

    Every method raises ``ServiceProblem`` for what the service refused, ``NoAnswer`` where it could
    not be reached and ``OutOfTime`` after ``timeout_s``.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """A client; its connections are made when needed and kept until it is closed.

        Args:
            base_url: of the service; default: ``ANOMALY_URL``, else ``http://127.0.0.1:8000``.
            transport: of httpx, in the place of its own: a proxy, a socket file, a test.
            options: ``ClientOptions``.
        """
        self._session = Session(base_url, **options)
        self._http = httpx.Client(transport=transport, **self._session.http_options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The connections are closed."""
        self._http.close()

    def score_files(
        self, files: FileInput | Iterable[FileInput], **options: Unpack[ImageOptions]
    ) -> list[ImageResult]:
        """One result for each file, in order: ``ImageScore``, or ``FailedFile`` for a broken one
        among several; a broken file alone raises. Many files go in several requests.

        Args:
            files: paths, bytes or files open for reading bytes.
            options: ``ImageOptions``.
        """
        return self._score(uploads_of(files), options)

    def score_file(self, file: FileInput, **options: Unpack[ImageOptions]) -> ImageScore:
        """The score of one file."""
        return only(self._score(uploads_of([file]), options))

    def score_arrays(
        self, images: np.ndarray | Sequence[np.ndarray], **options: Unpack[ImageOptions]
    ) -> list[ImageResult]:
        """One result for each uint8 array [H, W] or [H, W, C], in order; they travel as PNG."""
        return self._score(array_uploads(images), options)

    def score_csv(self, csv: CsvInput, **options: Unpack[SeriesOptions]) -> SeriesScores:
        """The windows of a csv: a path, its text (with line ends), bytes, or an open file."""
        return self._send(calls.csv_call(csv, options))

    def score_rows(
        self,
        rows: RowsInput,
        columns: Sequence[str] | None = None,
        timestamps: Sequence[Stamp] | np.ndarray | None = None,
        **options: Unpack[SeriesOptions],
    ) -> SeriesScores:
        """The windows of rows [T, D]; NaN or None is a missing reading. Without ``columns`` they
        are in the model's order.
        """
        return self._send(calls.rows_call(rows, columns, timestamps, options))

    def score_vectors(
        self,
        vectors: VectorsInput,
        columns: Sequence[str] | None = None,
        **options: Unpack[VectorOptions],
    ) -> VectorScores:
        """The scores of vectors [N, D], every value finite. Without ``columns`` their features are
        in the model's order.
        """
        return self._send(calls.vectors_call(vectors, columns, options))

    def append_rows(
        self,
        stream: str,
        rows: RowsInput,
        columns: Sequence[str] | None = None,
        timestamps: Sequence[Stamp] | np.ndarray | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[StreamOptions],
    ) -> StreamScores:
        """The windows that these rows complete. Appended once however often it is sent: a key of
        its own goes with every append; after a failure, the same key can be given again.
        """
        return self._send(
            calls.append_call(stream, rows, columns, timestamps, idempotency_key, options)
        )

    def stream(self, stream: str, **options: Unpack[CallOptions]) -> StreamState:
        """How far a stream is, its last results and its events."""
        return self._send(calls.stream_call(stream, options))

    def delete_stream(self, stream: str, **options: Unpack[CallOptions]) -> None:
        """A stream is forgotten."""
        self._send(calls.delete_stream_call(stream, options))

    def feedback(
        self,
        request_id: str,
        label: Label,
        index: int = 0,
        comment: str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Feedback:
        """A result is labelled, by the id of its request (``answer.request_id``) and its index in
        that answer; the last label of an item counts.
        """
        return self._send(calls.feedback_call(request_id, label, index, comment, timeout_s))

    def models(self, **options: Unpack[CallOptions]) -> list[Model]:
        """What is served."""
        return self._send(calls.models_call(options))

    def ready(self, **options: Unpack[CallOptions]) -> Readiness:
        """Whether every active model is loaded, asked once."""
        return self._send(calls.ready_call(options))

    def wait_until_ready(self, **options: Unpack[CallOptions]) -> Readiness:
        """That every active model is loaded, asked until it is so; ``OutOfTime`` says why not."""
        return self._send(calls.ready_call(options, patient=True))

    def _score(self, uploads: list[Upload], options: ImageOptions) -> list[ImageResult]:
        batches = self._session.batches(uploads, options)
        if len(batches) < 2:
            return [result for batch in batches for result in self._score_batch(batch)]
        pool = ThreadPoolExecutor(min(self._session.concurrency, len(batches)))
        try:
            return [r for results in pool.map(self._score_batch, batches) for r in results]
        finally:
            pool.shutdown(cancel_futures=True)

    def _score_batch(self, batch: Batch) -> list[ImageResult]:
        results = self._send(batch.call())
        if results is not None:
            return results
        return [result for half in batch.halves() for result in self._score_batch(half)]

    def _send(self, call: Call[T]) -> T:
        attempts = self._session.attempts(call)
        while True:
            request = attempts.request()
            try:
                response = self._http.request(**request)
            except httpx.RequestError as error:
                wait_s = attempts.failed(error)
            else:
                again_s = attempts.answered(response)
                if again_s is None:
                    return call.read(response)
                wait_s = again_s
            sleep(wait_s)
