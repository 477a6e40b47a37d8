"""What a disk holds after a loss of power: a recorder of system calls, and their replay.

The model is that of ALICE (Pillai et al., OSDI 2014): written bytes are safe after fsync of their
file, names after fsync of their directory, and nothing else is; of what was not synced any part
may have reached the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_DIRECTORY = -1


class Op(NamedTuple):
    """One system call below the root, or a mark between them. `node` is a file's number."""

    kind: str  # create, mkdir, write, fsync, sync_directory, link, unlink, mark
    path: str = ""
    node: int = 0
    data: bytes = b""


class Recorder:
    """The calls below `root`, in order."""

    def __init__(self, root: Path) -> None:
        self.ops: list[Op] = []
        self._root = str(root)
        self._nodes: dict[str, int] = {}
        self._descriptors: dict[int, tuple[str, int]] = {}

    def mark(self, what: str) -> None:
        """Something was acknowledged here."""
        self.ops.append(Op("mark", what))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While the block runs."""
        notes: dict[str, Callable[..., None]] = {
            "open": self._opened,
            "write": self._wrote,
            "fsync": self._synced,
            "link": self._linked,
            "unlink": self._unlinked,
            "mkdir": self._made_directory,
            "close": self._closed,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, note in notes.items():
                patch.setattr(os, name, _noting(getattr(os, name), note))
            yield

    def _below(self, path: Any) -> str | None:
        full = os.path.abspath(os.fspath(path))
        return full[len(self._root) + 1 :] if full.startswith(self._root + "/") else None

    def _opened(self, descriptor: int, path: Any, flags: int, *_: Any) -> None:
        if os.path.abspath(os.fspath(path)) == self._root:
            self._descriptors[descriptor] = ("", _DIRECTORY)
        elif (name := self._below(path)) is None:
            return
        elif flags & os.O_DIRECTORY:
            self._descriptors[descriptor] = (name, _DIRECTORY)
        else:
            if name not in self._nodes:
                self._nodes[name] = len(self.ops) + 1
                self.ops.append(Op("create", name, self._nodes[name]))
            self._descriptors[descriptor] = (name, self._nodes[name])

    def _wrote(self, count: int, descriptor: int, data: Any) -> None:
        if descriptor in self._descriptors:
            name, node = self._descriptors[descriptor]
            self.ops.append(Op("write", name, node, bytes(data[:count])))

    def _synced(self, _: None, descriptor: int) -> None:
        if descriptor in self._descriptors:
            name, node = self._descriptors[descriptor]
            kind = "sync_directory" if node == _DIRECTORY else "fsync"
            self.ops.append(Op(kind, name, node))

    def _linked(self, _: None, source: Any, target: Any) -> None:
        name, origin = self._below(target), self._below(source)
        if name is not None and origin is not None:
            self._nodes[name] = self._nodes[origin]
            self.ops.append(Op("link", name, self._nodes[name]))

    def _unlinked(self, _: None, path: Any, **__: Any) -> None:
        if (name := self._below(path)) is not None and self._nodes.pop(name, None):
            self.ops.append(Op("unlink", name))

    def _made_directory(self, _: None, path: Any, *__: Any) -> None:
        if (name := self._below(path)) is not None:
            self.ops.append(Op("mkdir", name, _DIRECTORY))

    def _closed(self, _: None, descriptor: int) -> None:
        self._descriptors.pop(descriptor, None)


def _noting(real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)  # a call that fails changes nothing
        note(result, *arguments)
        return result

    return call


class Disk:
    """What the calls have made of a disk so far: what processes see, and what is safe."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}  # name -> node
        self._safe: dict[str, int] = {}
        self._written: dict[int, bytes] = {}
        self._safe_bytes: dict[int, bytes] = {}

    def apply(self, op: Op) -> None:
        """The next call."""
        match op.kind:
            case "create" | "mkdir" | "link":
                self._seen[op.path] = op.node
            case "unlink":
                del self._seen[op.path]
            case "write":
                self._written[op.node] = self._written.get(op.node, b"") + op.data
            case "fsync":
                self._safe_bytes[op.node] = self._written.get(op.node, b"")
            case "sync_directory":
                for name in {n for n in (*self._seen, *self._safe) if _parent(n) == op.path}:
                    _set(self._safe, name, self._seen.get(name))

    def after_power_loss(self) -> Iterator[tuple[str, dict[str, bytes | None]]]:
        """Names with their bytes (None: a directory) in each way the loss may have gone.

        Nothing that was not synced is there; all names are, without bytes that were not synced;
        and each unsynced change of a name alone.
        """
        yield "nothing unsynced", self._tree(self._safe)
        yield "all names, no unsynced bytes", self._tree(self._seen)
        changed = {n for n in (*self._seen, *self._safe) if self._seen.get(n) != self._safe.get(n)}
        for name in sorted(changed):
            names = dict(self._safe)
            _set(names, name, self._seen.get(name))
            yield f"{name} beside what is safe", self._tree(names)

    def _tree(self, names: dict[str, int]) -> dict[str, bytes | None]:
        """A name is there if all directories above it are."""
        return {
            name: None if node == _DIRECTORY else self._safe_bytes.get(node, b"")
            for name, node in sorted(names.items())
            if all(above in names for above in _above(name))
        }


def write_tree(root: Path, tree: dict[str, bytes | None]) -> None:
    """The tree as files."""
    root.mkdir()
    for name, data in tree.items():  # sorted: directories come first
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


def _set(names: dict[str, int], name: str, node: int | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _above(name: str) -> Iterator[str]:
    while name := _parent(name):
        yield name
