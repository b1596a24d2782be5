"""The table: systems down, figures across, then the ratios."""

from .figures import FIGURES, MAIN
from .systems import PEERS

WIDTH = 118


def number(value):
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"


def _cell(results, system, key):
    value = results.median(system, key)
    low, high = results.spread(system, key)
    if value is None or low == high:
        return number(value)
    return f"{number(value)} ({number(low)}–{number(high)})"


def _title(figure):
    return figure.title + ("" if figure.more_is_better else " ↓")


def _blocks(columns, first_width):
    """Cuts columns of text into blocks that fit the width."""
    block, used = [], first_width
    for column in columns:
        width = max(len(cell) for cell in column) + 2
        if block and used + width > WIDTH:
            yield block
            block, used = [], first_width
        block.append(column)
        used += width
    if block:
        yield block


def _draw(rows, columns):
    """`rows`: the words at the left. `columns`: lists of text, each with its title first."""
    left = ["", *rows]
    first = max(len(word) for word in left)
    out = []
    for block in _blocks(columns, first):
        widths = [max(len(cell) for cell in column) for column in block]
        for i, word in enumerate(left):
            cells = "".join(f"  {column[i]:>{width}}" for column, width in zip(block, widths))
            out.append(f"{word:<{first}}{cells}".rstrip())
            if i == 0:
                out.append("─" * (first + sum(widths) + 2 * len(widths)))
        out.append("")
    return out


def table(results):
    """The whole report as text."""
    lines = ["median (min–max); ↓: less is better", ""]
    lines += _draw(results.systems, [
        [_title(figure), *(_cell(results, system, figure.key) for system in results.systems)]
        for figure in FIGURES
        if any(results.median(system, figure.key) is not None for system in results.systems)])
    for base in ("veth", *PEERS):
        if base not in results.systems:
            continue
        columns = [
            [_title(figure), *(number(results.ratio(system, base, figure.key)) for system in results.systems)]
            for figure in MAIN
            if results.median(base, figure.key)]
        if columns:
            lines.append(f"ratio to {base}")
            lines += _draw(results.systems, columns)
    return "\n".join(lines).rstrip()
