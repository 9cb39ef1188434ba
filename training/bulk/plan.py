"""What a run is to do, as ``_plan.json`` beside its results; who goes on must have the same."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contract.errors import InvalidInput

PLAN = "_plan.json"
_TOOLS = ("onnxruntime", "onnxruntime-gpu", "faiss-cpu", "faiss-gpu-cu12", "numpy", "pillow")
_READERS = ("anomaly-scoring", "pyarrow")

Kind = Literal["folder of images", "parquet of images", "rows", "vectors"]
Format = Literal["parquet", "csv"]


class _Member(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputInfo(_Member):
    """What is scored."""

    kind: Kind
    fingerprint: str
    """sha256 of the names, sizes and times of change of all files, in order."""
    items: int
    """Images, vectors, or windows (and recordings that are too short for one)."""
    files: int
    column: str | None = None
    """Of the images in a parquet file, or of the name of a recording among rows."""
    notes: tuple[str, ...] = ()


class ModelInfo(_Member):
    """By what it is scored."""

    name: str
    version: int
    digest: str


class Options(_Member):
    """How it is scored and written."""

    fpr: float
    review_fpr: float
    stride: int | None = None
    contributions: bool = False
    max_pixels: int = Field(64_000_000, ge=1)
    format: Format = "parquet"
    part_items: int = Field(ge=1)


class Plan(_Member):
    """The whole of ``_plan.json``."""

    format: Literal[1] = 1
    input: InputInfo
    model: ModelInfo
    options: Options
    versions: dict[str, str]

    @property
    def parts(self) -> int:
        return -(-self.input.items // self.options.part_items)

    def slice_of(self, part: int) -> tuple[int, int]:
        """The items [first, end) of a part."""
        size = self.options.part_items
        return part * size, min((part + 1) * size, self.input.items)

    def name_of(self, part: int) -> str:
        """The file of a part; names sort as the items do."""
        digits = max(5, len(str(self.parts - 1)))
        return f"part-{part:0{digits}}.{self.options.format}"


@dataclass(frozen=True)
class Job:
    """Where everything is, which may differ from machine to machine and from run to run."""

    source: Path
    out: Path
    models: Path
    provider: Literal["cpu", "cuda", "cuda!"] = "cpu"

    def plan(self) -> Plan:
        """The plan in the folder of results."""
        return Plan.model_validate_json((self.out / PLAN).read_bytes())


def versions() -> dict[str, str]:
    """Of what a score or the bytes of a part may depend on."""
    found = {"python": platform.python_version()}
    for tool in (*_TOOLS, *_READERS):
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_plan(out: Path, plan: Plan) -> None:
    """``_plan.json``, there wholly or not at all."""
    temporary = out / f".{PLAN}.{os.getpid()}"
    temporary.write_text(plan.model_dump_json(indent=2) + "\n")
    temporary.replace(out / PLAN)


def check_same(out: Path, before: Plan, now: Plan) -> None:
    """Nothing, where a run that was begun by ``before`` can be gone on with by ``now``.

    Raises:
        InvalidInput: it cannot; the message says what changed and what can be done.
    """
    changed = _differences(before.model_dump(), now.model_dump())
    if changed:
        raise InvalidInput(
            f"{out} holds a run that was begun otherwise: {'; '.join(changed)}. Its finished parts "
            "are left as they are. To go on, give it what it was begun with; to begin anew, name "
            "another folder, or throw these results away with --restart"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    found: list[str] = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{path}{key}.")
        elif old != new:
            if key == "fingerprint":
                found.append("files of the input were added, removed or changed since")
            else:
                found.append(f"{path}{key} was {_shown(old)} and is {_shown(new)}")
    return found


def _shown(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text
