"""A process that scores parts: ``python -m training.bulk.worker``, spoken to by ``local``.

A line in is the number of a part, a line out what became of it. It ends when nobody speaks to it
any more, so that none is left behind by a run that was killed.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from service.contract.errors import AnomalyError
from training.bulk.plan import Job
from training.bulk.scoring import PartScorer


def encode(job: Job) -> str:
    """A job as an argument of a command line."""
    return json.dumps(asdict(job), default=str)


def decode(text: str) -> Job:
    """What ``encode`` wrote."""
    members: dict[str, Any] = json.loads(text)
    return Job(**members | {key: Path(members[key]) for key in ("source", "out", "models")})


def serve(job: Job, lines: TextIO, answer: TextIO) -> None:
    """Parts are scored until there are no more lines."""

    def say(**members: Any) -> None:
        answer.write(json.dumps(members) + "\n")
        answer.flush()

    try:
        scorer = PartScorer.open(job)
        say(ready=True)
        for line in lines:
            say(items=scorer.write(int(line)))
    except (AnomalyError, OSError) as error:
        say(error=str(error))
    except MemoryError:
        say(error="not enough memory")


def main() -> None:
    """Speaks on the standard output as it was; what libraries print goes to the errors."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        serve(decode(sys.argv[1]), sys.stdin, answer)
    except BrokenPipeError:  # the run was killed: nobody is left to be told
        os._exit(1)


if __name__ == "__main__":
    main()
