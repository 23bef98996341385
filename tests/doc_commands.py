"""The commands in the bash blocks of a Markdown page, one by one, as a shell sees them."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

# Names that stand for a user's own file, folder or number, and what a check puts in their place.
PLACEHOLDERS = {
    "CONFIG": "configs/pretrain/demo_shapes.yaml",
    "FOLDER": "data/images",
    "FILE": "data/file",
    "文件夹": "data/images",
    "文件": "data/file",
    "N": "10",
}
NOT_RUN = re.compile(r"not run|没有跑过|未运行")


class Command(NamedTuple):
    """words: without comments; not_run: the page says so beside it."""

    page: str
    words: list[str]
    not_run: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands_of(page: str, text: str) -> list[Command]:
    """All commands of a page's bash blocks.

    A loop's body is read once for each of its words, a variable stands for its value, and a comment
    on its own line that says "not run" marks the rest of its block.
    """
    found: list[Command] = []
    for block in fenced(text, "bash"):
        found += _of_block(page, block)
    return found


def _of_block(page: str, block: str) -> list[Command]:
    variables: dict[str, list[str]] = {}
    found, marked = [], False
    for line in re.sub(r"\\\n", " ", block).splitlines():
        line = line.strip()
        if line.startswith("#"):
            marked = marked or bool(NOT_RUN.search(line))
            continue
        comment = re.search(r"(^|\s)#.*", line)
        not_run = marked or bool(comment and NOT_RUN.search(comment[0]))
        assigned = re.fullmatch(r'(\w+)="([^"]*)"', line)
        loop = re.fullmatch(r"for (\w+) in (.+); do", line)
        if assigned:
            variables[assigned[1]] = [assigned[2]]
        elif loop:
            variables[loop[1]] = loop[2].split()
        elif line not in ("", "done"):
            for text in _expanded(line.replace(" && break", ""), variables):
                for part in re.split(r"\s&&\s", text):
                    words = shlex.split(part, comments=True)
                    if words:
                        found.append(Command(page, words, not_run))
    return found


def _expanded(line: str, variables: dict[str, list[str]]) -> list[str]:
    lines = [line]
    for name, values in variables.items():
        if re.search(rf"\${name}\b", line):
            lines = [re.sub(rf"\${name}\b", value, text) for text in lines for value in values]
    return lines


def filled(words: list[str]) -> list[str]:
    """The words with the placeholders replaced."""
    names = "|".join(map(re.escape, PLACEHOLDERS))
    pattern = re.compile(rf"(?<![\w.])(?:{names})(?!\w)")
    return [pattern.sub(lambda match: PLACEHOLDERS[match[0]], word) for word in words]
