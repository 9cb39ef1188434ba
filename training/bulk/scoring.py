"""The results of one part: what a process that scores does, wherever it runs."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Self

import numpy as np
import pyarrow as pa

from service.contract import store
from service.contract.errors import (
    AnomalyError,
    DetectorFailure,
    InputError,
    InvalidInput,
)
from service.contract.manifest import SeriesInput, VectorInput
from service.contract.preprocess import Windows, prepare_image, prepare_series, prepare_vectors
from service.decision import DecisionRule
from service.decoding.images import read_header, read_pixels
from service.decoding.vectors import NOUN, check_whole, feature_names
from service.runtime import Runtime
from service.scoring import Scorer, Scores, contributions, self_test
from training.bulk import parts
from training.bulk.pictures import Sent, cells_in_parquet, files_in_folder
from training.bulk.plan import Job, Plan, versions
from training.bulk.rows import Recordings, Rows, read_segments
from training.bulk.sources import rows_folder
from training.bulk.vectors import vectors_in

_CELLS_AT_ONCE = 4_000_000
"""Of model inputs in memory; bounds memory, not the result."""
_ITEMS_AT_ONCE = 64


class PartScorer:
    """An opened, verified and self-tested model, and the plan whose parts it scores."""

    def __init__(self, job: Job, plan: Plan, scorer: Scorer) -> None:
        self.job, self.plan, self.scorer = job, plan, scorer
        options = plan.options
        self.rule = DecisionRule.of(scorer, options.fpr, options.review_fpr)
        spec = scorer.manifest.input
        self._columns: tuple[str, ...] = ()
        if isinstance(spec, VectorInput):
            self._columns = feature_names(spec)
        elif isinstance(spec, SeriesInput):
            self._columns = tuple(c.name for c in spec.columns)
        self._schema = parts.schema_of(plan, self._columns)
        if plan.input.kind == "rows":
            folder = rows_folder(job.source, job.out)
            spec = scorer.series_input
            self._rows = Rows(folder, job.out, spec)
            self._stride = options.stride or spec.stride
            self._recordings = Recordings(read_segments(job.out), spec, self._stride)

    @classmethod
    def open(cls, job: Job) -> Self:
        """Ready to score parts of the plan in ``job.out``, by the very model and tools it names.

        Raises:
            InvalidInput: the model or a tool here is not the one that the run was begun with.
            ArtifactError: the model is not there, altered, or does not pass its self-test.
        """
        plan = job.plan()
        here = versions()
        if here != plan.versions:
            other = ", ".join(
                f"{tool} {here.get(tool, 'missing')} instead of {plan.versions.get(tool, 'none')}"
                for tool in sorted({*here, *plan.versions})
                if here.get(tool) != plan.versions.get(tool)
            )
            raise InvalidInput(f"this machine would not score as the others do: {other}")
        artifact = store.open_artifact(job.models, plan.model.name, plan.model.version)
        if artifact.digest != plan.model.digest:
            raise InvalidInput(f"{artifact.path}: not the model that the run was begun with")
        scorer = Scorer.open(artifact, Runtime(job.provider, threads=1))
        self_test(scorer, artifact)
        return cls(job, plan, scorer)

    def write(self, part: int) -> int:
        """How many items the part has, whose file is now there."""
        table = self.table(part)
        parts.write_part(self.job.out, self.plan.name_of(part), table)
        return len(table)

    def table(self, part: int) -> pa.Table:
        """The results of a part, an item a row."""
        first, end = self.plan.slice_of(part)
        job, column = self.job, self.plan.input.column
        if self.plan.input.kind == "rows":
            found = self._windows(first, end)
        elif self.plan.input.kind == "vectors":
            found = self._vectors(first, end)
        elif self.plan.input.kind == "folder of images":
            found = self._images(files_in_folder(job.source, job.out, first, end))
        else:
            assert column is not None
            found = self._images(cells_in_parquet(job.source, job.out, column, first, end))
        return pa.Table.from_pylist(list(found), schema=self._schema)

    def _images(self, sent: Iterable[Sent]) -> Iterator[dict[str, Any]]:
        shape = self.scorer.shape
        at_once = max(1, min(_ITEMS_AT_ONCE, _CELLS_AT_ONCE // int(np.prod(shape))))
        x = np.empty((at_once, *shape), dtype=np.float32)
        waiting = iter(sent)
        while some := list(islice(waiting, at_once)):
            rows = [{"path": item.path, "row": item.row} for item in some]
            good: list[int] = []
            for i, item in enumerate(some):
                try:
                    self._prepare(item.data, x[len(good)])
                    good.append(i)
                except InputError as error:
                    rows[i] |= self._failed(error)
            for i, members in zip(good, self._score(x[: len(good)], maps=False), strict=True):
                rows[i] |= members
            yield from rows

    def _prepare(self, data: bytes | InputError, row: np.ndarray) -> None:
        if isinstance(data, InputError):
            raise data
        spec = self.scorer.image_input
        picture = read_header(data, self.plan.options.max_pixels)
        prepare_image(spec, read_pixels(picture, spec.channels), row)

    def _vectors(self, first: int, end: int) -> Iterator[dict[str, Any]]:
        spec, maps = self.scorer.vector_input, self.plan.options.contributions
        for some in vectors_in(self.job.source, self.job.out, spec, first, end):
            whole = np.isfinite(some.values).all(axis=1)
            scored = self._score(prepare_vectors(spec, some.values[whole]), maps=maps)
            for i, fine in enumerate(whole.tolist()):
                place = {"path": some.path, "row": some.row + i}
                yield place | (next(scored) if fine else self._unfinished(some.values[i : i + 1]))

    def _unfinished(self, vector: np.ndarray) -> dict[str, Any]:
        """What is said of a vector that lacks features."""
        try:
            check_whole(self.scorer.vector_input, vector, lambda _: NOUN, lambda _, j: f"/{j}")
        except InvalidInput as error:
            return self._failed(error)
        raise AssertionError("every feature is there")

    def _windows(self, first: int, end: int) -> Iterator[dict[str, Any]]:
        spec = self.scorer.series_input
        at_once = max(1, _CELLS_AT_ONCE // (spec.min_rows * len(spec.columns)))
        for piece in self._recordings.slices(first, end):
            label = self._recordings.labels[piece.recording]
            if piece.first == piece.end:
                rows = self._recordings.lengths[piece.recording]
                short = InvalidInput(f"{rows} rows; one window needs {spec.min_rows}")
                yield {"recording": label, **self._failed(short)}
            for begin in range(piece.first, piece.end, at_once):
                stop = min(begin + at_once, piece.end)
                cut = self._cut(piece.recording, begin, stop)
                yield from self._described(label, begin, cut)

    def _cut(self, recording: int, first: int, end: int) -> Windows:
        """Windows see their own rows only: cut piece by piece they are what they are at once."""
        offset = first * self._stride
        last = (end - 1) * self._stride + self.scorer.series_input.min_rows
        rows, stamps = self._rows.read(self._recordings.where(recording, offset, last))
        cut = prepare_series(self.scorer.series_input, rows, stamps, self._stride)
        return Windows(cut.values, cut.start + offset, cut.end + offset, cut.reasons)

    def _described(self, label: str | None, first: int, cut: Windows) -> Iterator[dict[str, Any]]:
        scored = self._score(cut.values[cut.scorable], maps=self.plan.options.contributions)
        for i, reason in enumerate(cut.reasons):
            place = {
                "recording": label,
                "index": first + i,
                "start": int(cut.start[i]),
                "end": int(cut.end[i]),
            }
            if reason is None:
                yield place | next(scored)
            else:
                yield place | {**self.rule.verdict("not_scorable"), "reason": reason}

    def _score(self, x: np.ndarray, *, maps: bool) -> Iterator[dict[str, Any]]:
        """The members of each item; what fails together is scored again one by one."""
        try:
            scores = self.scorer.score(x, maps=maps)
            if not scores.finite:
                raise DetectorFailure("a raw score or residual is not finite")
        except DetectorFailure as error:
            if len(x) == 1:
                yield self._failed(error)
            else:
                for i in range(len(x)):
                    yield from self._score(x[i : i + 1], maps=maps)
            return
        yield from self._members(scores)

    def _members(self, scores: Scores) -> Iterator[dict[str, Any]]:
        decisions = self.rule.decide(scores.p_value)
        shares = None
        if self.plan.options.contributions and scores.maps is not None:
            shares = contributions(scores.maps)
        for i, decision in enumerate(decisions):
            members = self.rule.members(scores, i, decision)
            yield members if shares is None else {**members, "contributions": shares[i].tolist()}

    def _failed(self, error: AnomalyError) -> dict[str, Any]:
        return {"threshold": self.rule.threshold, "fpr": self.rule.fpr, "error": str(error)}


@lru_cache(maxsize=1)
def opened(job: Job) -> PartScorer:
    """The part scorer of this process: opened at its first part and kept."""
    return PartScorer.open(job)
