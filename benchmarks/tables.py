"""Tables and plots, before they are printed, written or drawn."""

from dataclasses import dataclass


@dataclass
class Table:
    title: str
    columns: list
    rows: list
    note: str = ""


@dataclass
class Plot:
    """
    Values with ranges, in groups: bars, or, when logarithmic, dots.

    `groups` is a list of (label, [(name, value, lowest, highest)]).
    """

    name: str
    title: str
    unit: str
    groups: list
    logarithmic: bool = True

    @classmethod
    def of_groups(cls, name, title, unit, groups, get_label=str, **kwargs):
        """Make a plot from a list of (label, {name: summary})."""
        return cls(
            name,
            title,
            unit,
            [
                (
                    label,
                    [
                        (
                            get_label(key),
                            summary["median"],
                            summary["lowest"],
                            summary["highest"],
                        )
                        for key, summary in summaries.items()
                    ],
                )
                for label, summaries in groups
            ],
            **kwargs,
        )


def describe_threads(threads, connections):
    return "%s on %d connections" % (
        "1 thread" if threads == 1 else "%d threads" % threads,
        connections,
    )


def format_number(value):
    """Return a number with as many digits as tell something."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return "{:,.0f}".format(value)
    return "%.*f" % (1 if abs(value) >= 100 else 2, value)


def format_range(summary):
    return "%s (%s to %s)" % tuple(
        format_number(summary[key]) for key in ("median", "lowest", "highest")
    )


def format_ratio(ratio):
    return "–" if ratio is None else "%.2f" % ratio


def format_summary(summary, is_reference=False):
    """Return the cells for a median with its range, and for the ratio."""
    return [
        format_range(summary),
        "1" if is_reference else format_ratio(summary["ratio"]),
    ]


def print_table(table):
    """Print a table as text."""
    print("\n%s" % table.title)
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths)]
        print(("  " + "  ".join(cells)).rstrip(), flush=True)


def format_markdown(table):
    lines = ["### %s" % table.title, ""]
    if table.note:
        lines += [table.note, ""]
    lines += [
        "| %s |" % " | ".join(table.columns),
        "|%s" % ("---|" * len(table.columns)),
        *("| %s |" % " | ".join(row) for row in table.rows),
    ]
    return "\n".join(lines)
