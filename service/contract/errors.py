"""Every exception of ours, drawn as a tree. Classes know no HTTP: ``service.problems`` maps them.

AnomalyError
├── InputError                 what was sent cannot be scored
│   ├── MalformedInput         the bytes are not what they claim to be (truncated, broken JSON)
│   ├── UnsupportedMedia       a kind of file or body that is not accepted
│   ├── InputTooLarge          more bytes, pixels, images or cells than allowed
│   └── InvalidInput           well-formed but wrong; ``errors`` points at each place
├── ArtifactError              a folder below models/ cannot be used
│   ├── ArtifactNotFound       no such name or version
│   ├── ArtifactCorrupt        a file is missing, truncated or altered; the message names it
│   ├── ArtifactIncompatible   another format, family or tool version than this code reads
│   ├── SelfTestFailed         golden examples score differently from when they were recorded
│   └── PublishConflict        the version to publish exists already
├── Refused                    the caller may not, or not now
│   ├── Unauthenticated        no key, or one that is not known
│   ├── Forbidden              a known key without the scope that is needed
│   ├── RateLimited            more requests than the caller may send; later it would be accepted
│   └── Conflict               the state of the service does not allow it
├── NotReady                   the model exists but is not loaded (yet)
├── Overloaded                 too much is waiting already; later it would be accepted
├── Unavailable                a store that the answer depends on cannot be used
├── StreamNotFound             no such stream, or none any more
├── AnswerNotFound             no answer to such a request is remembered (any more)
├── DeadlinePassed             the answer was not there in time
└── DetectorFailure            a runtime failed on valid input; a bug or a broken machine
"""

from dataclasses import dataclass


class AnomalyError(Exception):
    """Base of all exceptions raised on purpose by this project."""


@dataclass(frozen=True)
class FieldError:
    """One wrong place in an input: a JSON pointer (or column name) and what is wrong there."""

    pointer: str
    detail: str


class InputError(AnomalyError):
    """What was sent cannot be scored."""


class MalformedInput(InputError):
    """The bytes are not what they claim to be."""


class UnsupportedMedia(InputError):
    """A kind of file or body that is not accepted."""


class InputTooLarge(InputError):
    """More bytes, pixels, images or cells than allowed."""


class InvalidInput(InputError):
    """Well-formed but wrong."""

    def __init__(self, message: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class ArtifactError(AnomalyError):
    """A folder below the models directory cannot be used."""


class ArtifactNotFound(ArtifactError):
    """No such model or version."""


class ArtifactCorrupt(ArtifactError):
    """A file of the artifact is missing, truncated or altered."""


class ArtifactIncompatible(ArtifactError):
    """The artifact was written for another format, family or tool version."""


class SelfTestFailed(ArtifactError):
    """Golden examples score differently from when they were recorded."""


class PublishConflict(ArtifactError):
    """The version to publish exists already."""


class Refused(AnomalyError):
    """The caller may not, or not now."""


class Unauthenticated(Refused):
    """No key was sent, or one that is not known."""


class Forbidden(Refused):
    """The key is known and lacks the scope that is needed."""


class RateLimited(Refused):
    """More requests than the caller may send."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Conflict(Refused):
    """The state of the service does not allow what was asked for."""


class NotReady(AnomalyError):
    """The model exists but is not loaded (yet)."""


class Overloaded(AnomalyError):
    """Too much is waiting already; later it would be accepted."""


class Unavailable(AnomalyError):
    """A store that the answer depends on cannot be used; later it may be."""


class StreamNotFound(AnomalyError):
    """No such stream, or none any more."""


class AnswerNotFound(AnomalyError):
    """No answer to a request of this id is remembered, or none any more."""


class DeadlinePassed(AnomalyError):
    """The answer was not there in time."""


class DetectorFailure(AnomalyError):
    """A runtime failed on valid input."""
