"""A kernel's PTX, parsed into blocks of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_REGISTERS = re.compile(r"^\.reg\s+\.(\w+)\s+(.*)$")
# Collective instructions of the threads of a program or of a warp.
_OF_PROGRAM = ("bar.sync", "barrier.sync")
_OF_WARP = ("bar.warp", "shfl.sync", "redux.sync", "vote.sync", "ldmatrix", "stmatrix")


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[str, ...]
    guard: str | None = None  # a predicate register, "!" before it where it is negated

    @property
    def parts(self) -> list[str]:
        return self.opcode.replace("::cta", "").split(".")

    @property
    def gate(self) -> str | None:
        """Whose threads must all reach it before it runs: "program", "warp", or None."""
        if self.opcode.startswith(_OF_PROGRAM):
            return "program"
        return "warp" if self.opcode.startswith(_OF_WARP) else None

    @property
    def leaves(self) -> bool:
        return self.parts[0] in ("bra", "ret", "exit")

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}"


@dataclass
class Block:
    """Instructions that run in sequence; a collective instruction is alone in its block."""

    gate: str | None = None
    instructions: list[Instruction] = field(default_factory=list)


class Program:
    """One kernel: its parameters, the widths of its registers, its blocks and their labels."""

    def __init__(self, text: str) -> None:
        head, body = text[text.index(".entry") :].split("\n{", 1)
        self.parameters = re.findall(r"\.param\s+\.\w+[^,\n]*?\s(\w+)(?=\s*[,\n)])", head)
        self.widths: dict[str, int] = {}  # of registers, by the letters of their names
        self.written: set[str] = set()  # registers that some instruction gives a value
        self.local = 0  # bytes of a thread
        self.blocks, self.labels = [Block()], dict[str, int]()
        body = re.sub(r"//[^\n]*", "", body.split("\n}", 1)[0])
        body = re.sub(r"^\s*\.(loc|file|pragma)\b[^\n]*$", "", body, flags=re.MULTILINE)
        for statement in body.split(";"):
            self._add(statement)
        self.blocks.append(Block())

    def _add(self, statement: str) -> None:
        text = " ".join(statement.split()).lstrip("{} ")
        while label := re.match(r"^(\$?[\w$]+):(?!:)\s*", text):
            if self.blocks[-1].instructions:
                self.blocks.append(Block())
            self.labels[label[1]] = len(self.blocks) - 1
            text = text[label.end() :].lstrip("{} ")
        if declared := _REGISTERS.match(text):
            width = 1 if declared[1] == "pred" else int(declared[1][1:])
            for name in declared[2].split(","):
                self.widths[re.sub(r"<\d+>|\d+$", "", name.strip())] = width
        elif size := re.match(r"^\.local\b.*\[(\d+)\]$", text):
            self.local += int(size[1])
        elif text and not text.startswith("."):
            self._append(text)

    def _append(self, text: str) -> None:
        guard = None
        if guarded := re.match(r"^@(!?[%\w]+)\s+", text):
            guard, text = guarded[1], text[guarded.end() :]
        opcode, _, rest = text.partition(" ")
        operands = tuple(match.strip() for match in _OPERAND.findall(rest))
        one = Instruction(opcode, operands, guard)
        if operands and not opcode.startswith("st"):
            self.written.update(re.findall(r"%[\w.]+", operands[0]))
        if one.gate and self.blocks[-1].instructions:
            self.blocks.append(Block())
        self.blocks[-1].gate = one.gate
        self.blocks[-1].instructions.append(one)
        if one.gate or one.leaves:
            self.blocks.append(Block())

    def width(self, register: str) -> int:
        return self.widths[re.sub(r"\d+$", "", register)]
