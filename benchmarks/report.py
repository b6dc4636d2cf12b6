"""The page, with its plots and the figures that it's made of."""

import json

from tables import format_markdown

HEAD = """\
# Benchmarks

This page and its plots are written by `make bench` from
[results.json](benchmarks/results.json). [How it's measured](../benchmarks/README.md).

Peers take turns within a run, on one machine. Compare what is in one table, and
ratios rather than times: these depend on the machine, on the build of Python, and on
what else is running. Nothing is said here of other machines, servers and loads.
"""

QUICK = (
    "**This is from a quick run, which shows that it works. Its figures mean nothing.**"
)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def update(directory, measured, parts):
    """
    Write the page with what was measured, and with what earlier runs have
    measured of the other parts.

    `measured` is a dict by the names of the modules in `parts`.
    """
    figures = directory / "benchmarks"
    path = figures / "results.json"
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError):
        results = {}
    for name, content in measured.items():
        if content["quick"] and name in results and not results[name]["quick"]:
            print("\n%s: a full run's figures aren't replaced by a quick one's." % name)
            continue
        results[name] = content
    write_json(path, results)
    sections = [HEAD]
    for part in parts:
        if part.__name__ in results:
            sections.append(make_section(part, results[part.__name__], figures))
        else:
            sections.append("## %s\n\nNot measured yet.\n" % part.TITLE)
    page = directory / "benchmarks.md"
    page.write_text("\n".join(sections))
    print("\nWritten: %s" % page)


def make_section(part, content, directory):
    result = content["result"]
    lines = ["## %s" % part.TITLE, ""]
    if content["quick"]:
        lines += [QUICK, ""]
    lines += [describe(part), ""]
    lines += ["- %s" % line for line in result["left_out"]]
    if result["left_out"]:
        lines.append("")
    for plot in part.get_plots(result):
        if draw(plot, directory):
            lines += ["![%s](benchmarks/%s.svg)" % (plot.title, plot.name), ""]
    for table in part.get_tables(result):
        lines += [format_markdown(table), ""]
    lines += [
        "Measured on %s in %d seconds with %s."
        % (
            content["date"],
            content["seconds"],
            ", ".join("%s %s" % item for item in content["versions"].items()),
        ),
        "",
    ]
    return "\n".join(lines)


def describe(part):
    """Return what a part's docstring says beyond its title."""
    paragraphs = [
        " ".join(paragraph.split()) for paragraph in part.__doc__.strip().split("\n\n")
    ]
    first = paragraphs[0].partition(": ")[2]
    return "\n\n".join([first[0].upper() + first[1:], *paragraphs[1:]])


def draw(plot, directory):
    """Draw a plot. Return whether that could be done."""
    try:
        import matplotlib
    except ImportError:
        print("%s isn't drawn: matplotlib isn't installed." % plot.name)
        return False
    matplotlib.use("svg")
    # Text remains text, and the same figures make the same file.
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = plot.name
    from matplotlib import pyplot

    names = list(dict.fromkeys(bar[0] for _, bars in plot.groups for bar in bars))
    colors = matplotlib.colormaps["tab20"].colors
    lines = [line for label, bars in plot.groups for line in [(label,), *bars]]
    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 0.24 * len(lines)))
    for position, (name, *figures) in enumerate(lines):
        if not figures:
            continue
        value, lowest, highest = figures
        color = colors[names.index(name) % len(colors)]
        style = {
            "xerr": [[value - lowest], [highest - value]],
            "capsize": 2,
            "ecolor": color if plot.logarithmic else "black",
        }
        # A bar's length means nothing where there is no zero.
        if plot.logarithmic:
            axes.errorbar(value, position, fmt="o", color=color, **style)
        else:
            axes.barh(position, value, height=0.8, color=color, **style)
    axes.set_yticks(range(len(lines)), [line[0] for line in lines], fontsize=8)
    for tick, line in zip(axes.get_yticklabels(), lines):
        tick.set_fontweight("normal" if len(line) > 1 else "bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    if plot.logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(plot.unit, fontsize=8)
    axes.set_title(plot.title, fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        directory / ("%s.svg" % plot.name),
        bbox_inches="tight",
        metadata={"Date": None},
    )
    pyplot.close(figure)
    return True
