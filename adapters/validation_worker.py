"""The process in which uploaded files are read: niced, bounded, without anything to harm.

One request and one answer a line, JSON, on stdin and stdout; it ends when its stdin does. Run by
`validation_process`, as `python -m polygraft.adapters.validation_worker`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from polygraft.adapters.errors import PolygraftError
from polygraft.adapters.limits import MIB

NICENESS = 10
MAX_OPEN_FILES = 64

Request = Mapping[str, Any]


def main() -> None:
    """Answer requests to validate files."""
    answers = _private_stdout()
    import torch

    torch.set_num_threads(1)
    serve(_validate, sys.stdin, answers)


def serve(answer: Callable[[Request], dict[str, Any]], requests: TextIO, answers: TextIO) -> None:
    """Say that it is ready, then answer line by line within the limits that each request names."""
    os.nice(NICENESS)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    _send(answers, {"ready": os.getpid()})
    for line in requests:
        request = json.loads(line)
        bound(request["memory_bytes"], request["cpu_seconds"])
        try:
            reply = answer(request)
        except PolygraftError as error:
            from polygraft.adapters.process_records import error_to_json

            reply = error_to_json(error)
        except MemoryError:
            reply = {"failed": "memory", "detail": "out of memory"}
        except Exception as error:
            cause = "memory" if "can't allocate memory" in str(error) else "error"
            reply = {"failed": cause, "detail": traceback.format_exc()[-4000:]}
        _send(answers, reply)


def bound(memory_bytes: int, cpu_seconds: int) -> None:
    """From now on so much more private memory and processor time, or an error and a signal."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1
    _limit(resource.RLIMIT_CPU, spent + cpu_seconds)
    data = _private_bytes()
    if data is not None:
        _limit(resource.RLIMIT_DATA, data + memory_bytes)


def _validate(request: Request) -> dict[str, Any]:
    from polygraft.adapters.manifest import canonical_json
    from polygraft.adapters.process_records import from_json, to_json
    from polygraft.adapters.validation import validate_files

    validated = validate_files(*from_json(request["arguments"]))
    return {
        "manifest": canonical_json(validated.manifest).decode(),
        "weights": to_json(validated.weights),
        "warnings": list(validated.warnings),
    }


def _private_stdout() -> TextIO:
    """The pipe to the server. What a library prints goes to stderr instead."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _send(answers: TextIO, reply: Mapping[str, Any]) -> None:
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


def _limit(what: int, soft: int) -> None:
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(what, (soft, hard))


def _private_bytes() -> int | None:
    """Private writable memory now, which RLIMIT_DATA counts on Linux; None elsewhere."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmData:"):
                    return int(line.split()[1]) * (MIB >> 10)
    except OSError:
        pass
    return None


if __name__ == "__main__":
    main()
