"""The documents are true where a machine can tell: links, commands, flags, targets, code blocks."""

import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from house.checkout import ROOT, listed_files

from polygraft.client.options import GenerateOptions, TextOptions
from polygraft.commands import COMMANDS

DOCUMENTS = listed_files("*.md")
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|#|mailto:)([^)#\s]+)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^([a-z0-9-]+):.*## ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced code block; `where` is file:line."""

    where: str
    language: str
    code: str


def blocks(*languages: str) -> list[Block]:
    return [
        Block(f"{path}:{text[: match.start()].count(chr(10)) + 1}", match[1], match[2])
        for path in DOCUMENTS
        for text in [(ROOT / path).read_text()]
        for match in BLOCK.finditer(text)
        if match[1] in languages
    ]


SHELL_BLOCKS = blocks("sh", "bash")
PYTHON_BLOCKS = blocks("python")
COMMAND_LINES = [
    (block.where, line)
    for block in SHELL_BLOCKS
    for line in block.code.replace("\\\n", " ").splitlines()
]


@cache
def help_of(*command: str) -> str:
    run = [str(Path(sys.executable).with_name("polygraft")), *command, "--help"]
    result = subprocess.run(run, capture_output=True, text=True, env={"COLUMNS": "200"})
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_to_files(document: Path) -> None:
    targets = LINK.findall((ROOT / document).read_text())
    lost = [target for target in targets if not (ROOT / document.parent / target).exists()]
    assert lost == []


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.where)
def test_python_in_documents_compiles(block: Block) -> None:
    compile(block.code, block.where, "exec")


def test_the_guide_has_every_option_of_an_answer() -> None:
    guide = (ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| (.*?) \|", guide.split("## Options of an answer")[1], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    known = {*TextOptions.__annotations__, *GenerateOptions.__annotations__}
    assert known <= set(listed)


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.where)
def test_shell_in_documents_parses(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.code, check=True, text=True)


def polygraft_calls(line: str) -> list[list[str]]:
    """The words after `polygraft` in a line of shell, cut at pipes, comments and redirections."""
    found = re.findall(r"(?:^|[ /|&])polygraft ([a-z][^|#&>]*)", line)
    return [call.split() for call in found]


@pytest.mark.parametrize(("where", "line"), COMMAND_LINES, ids=lambda value: value[:60])
def test_commands_and_flags_in_documents_exist(where: str, line: str) -> None:
    for words in polygraft_calls(line):
        assert words[0] in COMMANDS, where
        sub_commands = [word for word in words[1:2] if word in help_of(words[0]).split()]
        text = help_of(words[0], *(sub_commands if words[0] in {"adapters", "base"} else []))
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in text, f"{where}: {word}"


@pytest.mark.parametrize(("where", "line"), COMMAND_LINES, ids=lambda value: value[:60])
def test_make_targets_in_documents_exist(where: str, line: str) -> None:
    targets = TARGET.findall((ROOT / "Makefile").read_text())
    for target in re.findall(r"(?:^|[;&] *)make ([a-z0-9-]+)", line):
        assert target in targets, where


def test_make_lists_every_phony_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert sorted(TARGET.findall(makefile)) == sorted(phony.split())
    listed = subprocess.run(["make"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert all(f"make {target} " in listed for target in phony.split())
