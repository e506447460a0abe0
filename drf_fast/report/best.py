"""The best numbers of each column of a table, to be set in bold."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

Positions = frozenset[tuple[int, int]]


def best(
    body: list[list[str]], blocks: Mapping[int, Hashable], columns: Iterable[int]
) -> Positions:
    """The largest number of each column among comparable rows, as printed, including ties.

    Args:
        body: a table's rows of text; a cell begins with its number.
        blocks: row -> block in which it is compared, its sigma: a higher sigma allows larger radii
            at the cost of small ones. If no block has two rows, all rows are compared.
        columns: the columns to mark.

    Returns:
        (row, column) of each cell; none if all rows of a block are equal.
    """
    members: dict[Hashable, list[int]] = {}
    for row, block in blocks.items():
        members.setdefault(block, []).append(row)
    if max(map(len, members.values()), default=0) < 2:
        members = {None: list(blocks)}
    found = set()
    for column in columns:
        for rows in members.values():
            values = {row: float(body[row][column].split()[0]) for row in rows}
            most = max(values.values())
            if most > min(values.values()):
                found |= {(row, column) for row, value in values.items() if value == most}
    return frozenset(found)
