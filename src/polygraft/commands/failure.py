"""How a command ends: the exit codes, and the exception that carries one to the terminal."""

from __future__ import annotations

import errno
from enum import IntEnum

from polygraft.adapters.errors import (
    AdapterIncompatible,
    AdapterInUse,
    AdapterInvalid,
    AliasConflict,
    DeadlineExpired,
    GateRefused,
    InvalidRequest,
    ModelRefused,
    NotFound,
    Overloaded,
    PolygraftError,
    Unavailable,
    UploadCorrupt,
)
from polygraft.trainer.errors import TrainerError


class ExitCode(IntEnum):
    """Exit codes of every `polygraft` command."""

    OK = 0
    INTERNAL = 1  # a bug, here or in the server
    USAGE = 2  # wrong arguments, options or configuration
    DATA = 3  # the data set is missing or malformed
    TRAINING = 4  # training failed: non-finite loss, out of memory, weights did not move
    REFUSED = 5  # the adapter or the promotion was refused
    UNREACHABLE = 6  # no server, or it is overloaded, draining or dead
    INTERRUPTED = 130  # Ctrl-C; whatever was finished is saved


class CommandFailed(Exception):
    """Ends a command with one sentence on stderr and an exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


ERROR_TO_EXIT_CODE: tuple[tuple[type[PolygraftError], ExitCode], ...] = (
    (InvalidRequest, ExitCode.USAGE),
    (NotFound, ExitCode.USAGE),
    (AdapterInvalid, ExitCode.REFUSED),
    (AdapterIncompatible, ExitCode.REFUSED),
    (AdapterInUse, ExitCode.REFUSED),
    (AliasConflict, ExitCode.REFUSED),
    (GateRefused, ExitCode.REFUSED),
    (ModelRefused, ExitCode.REFUSED),
    (UploadCorrupt, ExitCode.REFUSED),
    (Overloaded, ExitCode.UNREACHABLE),
    (Unavailable, ExitCode.UNREACHABLE),
    (DeadlineExpired, ExitCode.UNREACHABLE),
)


_OF_FILES = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTEMPTY),
        *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT),
    }
)


def about_files(error: Exception) -> str | None:
    """What the machine says of a file or directory of the user's; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _OF_FILES:
        return None
    where = error.filename2 or error.filename
    return f"{where}: {error.strerror}." if where else f"{error.strerror}."


def exit_code_of(error: Exception) -> ExitCode:
    """The exit code of an error that reached the top of the program."""
    if isinstance(error, CommandFailed):
        return error.code
    if isinstance(error, TrainerError):
        return ExitCode(error.exit_code)
    if about_files(error):
        return ExitCode.USAGE
    for kind, code in ERROR_TO_EXIT_CODE:
        if isinstance(error, kind):
            return code
    return ExitCode.INTERNAL
