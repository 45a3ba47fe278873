"""Tables for the terminal."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns of plain text: words to the left, figures to the right."""
    columns = list(zip(header, *rows, strict=True))
    lines = ["" for _ in range(len(rows) + 1)]
    for column in columns:
        width = max(map(len, column))
        figures = [cell for cell in column[1:] if cell not in ("", "-")]
        right = bool(figures) and all(cell.lstrip("+-−").replace(".", "").rstrip("x%").isdigit() for cell in figures)
        for i, cell in enumerate(column):
            lines[i] += (cell.rjust(width) if right else cell.ljust(width)) + "  "
    lines.insert(1, "  ".join("-" * max(map(len, column)) for column in columns))
    return "\n".join(line.rstrip() for line in lines)
