"""Tables of words, as commands print them."""

from collections.abc import Collection


def aligned(table: list[list[str]], numbers: Collection[int] = ()) -> list[str]:
    """A line a row; the columns in ``numbers`` are flush right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def print_table(table: list[list[str]]) -> None:
    for line in aligned(table):
        print(line)
