"""The section about what builds where."""

from __future__ import annotations

from parhelion.tuning.report.data import Matrix, MatrixCell
from parhelion.tuning.report.html import Content, Markup, code, element, join, table


def matrix_section(matrix: Matrix | None) -> Markup:
    """Ops by targets, then why what is not built is not."""
    parts: list[Content] = [element("h2", {"id": "matrix"}, "Compile matrix")]
    if matrix is None:
        parts.append(element("p", {}, "Not given: pass --matrix with the JSON of parhelion build --check --json."))
    else:
        parts.append(element("p", {}, _explanation(matrix)))
        parts.append(element("div", {"class": "words"}, _matrix(matrix)))
        parts += [element("div", {"class": "words"}, each) for each in _reasons(matrix)]
    return element("section", {"aria-labelledby": "matrix"}, *parts)


def _explanation(matrix: Matrix) -> str:
    if matrix.counts == "programs":
        return "Tile programs built, of those that there are, and what serves instead of the others."
    return (
        "Contracts all of whose tile programs are built, of those that there are. The file lists what builds; what "
        "serves instead of the rest is in the JSON of parhelion build --check --json."
    )


def _matrix(matrix: Matrix) -> Markup:
    cells = {(cell.op, cell.target): cell for cell in matrix.cells}
    rows = [
        [code(op), *(_cell(cells.get((op, target))) for target in matrix.targets)]
        for op in dict.fromkeys(cell.op for cell in matrix.cells)
    ]
    return table(f"{matrix.counts} built, from {matrix.source}", ["op", *matrix.targets], rows)


def _cell(cell: MatrixCell | None) -> Content:
    if cell is None:
        return "-"
    count = f"{cell.built}/{cell.total}"
    if cell.built == cell.total:
        return f"✓ {count}"
    said = "not built" if cell.built == 0 else "partly"
    instead = f"; else {' or '.join(cell.instead)}" if cell.instead else ""
    return element("span", {"class": "no"}, f"{said}, {count}{instead}")


def _reasons(matrix: Matrix) -> list[Markup]:
    targets: dict[tuple[str, str], list[str]] = {}
    for cell in matrix.cells:
        for reason in cell.reasons:
            targets.setdefault((cell.op, reason), []).append(cell.target)
    rows = [[code(op), ", ".join(found), join([reason])] for (op, reason), found in targets.items()]
    return [table("Why not", ["op", "targets", "reason"], rows)] if rows else []
