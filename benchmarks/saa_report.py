"""The output files of saa_overhead.py: table (Markdown), single steps (CSV) and plot (PNG)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]
Measurement = dict[str, Any]

UNPATCHED = -1
STEPS_A_RUN = 2
KERNELS_A_LAYER = 9
MACHINE = ("machine", "threads", "system", "torch", "comfyui", "dtype")
LEGEND = """\
People: "unpatched" is the model as it was; 0 has the low-rank updates merged into its weights and no people.
Overhead: added / (step - added) inside each step; added is the time of the work the pack adds to that step, without
what it does once per run. Step / merged: whole steps against those of 0 people at the same place of the same round; its
spread is the noise of the machine. Once per run: everything the pack prepares and keeps, of it the projection of the
identity tokens to keys and values, and how many layers are projected in a run of two steps. Memory: the most during a
step (CPU: resident memory of the whole process; CUDA: what torch allocated), and how much of it came during the step.
Figures are medians, in brackets smallest and largest."""


def write(stem: Path, measurements: list[Measurement]) -> str:
    """Writes stem.md, stem.csv and stem.png; returns the text of the first."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(measurements)
    stem.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    write_csv(stem.with_suffix(".csv"), measurements)
    plot(stem.with_suffix(".png"), measurements)
    return text


def attention_name(measurement: Measurement) -> str:
    """The attention that ran and the flag that chose it, such as `pytorch (--use-pytorch-cross-attention)`."""
    machine = measurement["machine"]
    flags = machine["flags"].replace("--cpu", "").strip()
    return f"{machine['attention']} ({flags or 'the default'})"


def target(device: str, size: int) -> float | None:
    """The target for the overhead, in percent."""
    return 2.0 if device == "cuda" else {256: 0.9, 512: 0.5}.get(size)


def overhead(row: Row) -> float:
    """The overhead of one step, in percent."""
    return 100 * row["added"] / (row["seconds"] - row["added"])


# --- the text --------------------------------------------------------------------------------------------------------


def markdown(measurements: list[Measurement]) -> str:
    """The whole report."""
    machine = measurements[0]["machine"]
    parts = ["# What the people cost, per UNet step", "; ".join(f"{name} {machine[name]}" for name in MACHINE), LEGEND]
    for measurement in measurements:
        for size in dict.fromkeys(row["size"] for row in measurement["steps"]):
            parts += size_section(measurement, size)
    parts += kernel_section([row for measurement in measurements for row in measurement["kernels"]])
    parts += [device_kernels(measurement) for measurement in measurements if measurement["device_kernels"]]
    return "\n\n".join(parts)


def size_section(measurement: Measurement, size: int) -> list[str]:
    """Title, table and verdict for one size."""
    rows = [row for row in measurement["steps"] if row["size"] == size]
    merged = {row["step"]: row for row in rows if row["people"] == 0}
    header = ("people", "step, s", "added, ms", "overhead, %", "step / merged", "once per run, ms", "memory, MiB")
    groups = [[row for row in rows if row["people"] == people] for people in dict.fromkeys(r["people"] for r in rows)]
    lines = [table_line(group, merged) for group in groups]
    title = f"## {size} x {size} pixels, attention {attention_name(measurement)}, {len(merged)} steps of each kind"
    loads = f"Load of the machine meanwhile: {min(row['load'] for row in rows)} to {max(row['load'] for row in rows)}."
    return [title, table(header, lines), loads, verdict(measurement["machine"]["device"], size, rows)]


def table_line(rows: list[Row], merged: dict[int, Row]) -> list[str]:
    """The table line of one number of people."""
    people = rows[0]["people"]
    ratios = [row["seconds"] / merged[row["step"]]["seconds"] for row in rows]
    memory = f"{median(r['peak'] for r in rows) / 2**20:.0f} (+{median(r['working'] for r in rows) / 2**20:.0f})"
    return [
        "unpatched" if people == UNPATCHED else str(people),
        spread([row["seconds"] for row in rows], "{:.2f}"),
        spread([1000 * row["added"] for row in rows], "{:.1f}") if people > 0 else "-",
        spread([overhead(row) for row in rows], "{:.2f}") if people > 0 else "-",
        spread(ratios, "{:.3f}") if people else "1",
        once_per_run(rows) if people > 0 else "-",
        memory if rows[0]["peak"] else "not measured",
    ]


def once_per_run(rows: list[Row]) -> str:
    """Sums over sampling runs, which have up to two steps each."""
    runs = [rows[i : i + STEPS_A_RUN] for i in range(0, len(rows), STEPS_A_RUN)]
    once, projection = (median(1000 * sum(row[name] for row in run) for run in runs) for name in ("once", "projection"))
    count = median(sum(row["projections"] for row in run) for run in runs)
    return f"{once:.0f}, of it {projection:.0f} for {count:.0f} layers"


def verdict(device: str, size: int, rows: list[Row]) -> str:
    """Whether the target is met."""
    wanted = target(device, size)
    if wanted is None:
        return "No target for this size."
    counts = sorted({row["people"] for row in rows if row["people"] > 0})
    missed = [n for n in counts if median(overhead(row) for row in rows if row["people"] == n) > wanted]
    return f"Target: at most {wanted} %. " + (
        f"Missed with {', '.join(map(str, missed))} people." if missed else "Met."
    )


def kernel_section(rows: list[Row]) -> list[str]:
    """The operations that the pack dispatches in a layer. Empty when nothing was counted."""
    if not rows:
        return []
    header = ("people", "dtype", "layout boost", "operations a layer", "waits a step", "which")
    lines = [
        [
            str(row["people"]),
            row["dtype"],
            "on" if row["boost"] else "off",
            str(len(row["operations"])),
            str(row["syncs"]),
            ", ".join(row["operations"]),
        ]
        for row in rows
    ]
    most = max(len(row["operations"]) for row in rows)
    return [
        "## Kernels",
        f"aten operations that compute or copy, of the pack alone, in the layer that has most of them. Target: at most "
        f"{KERNELS_A_LAYER}. {'Met.' if most <= KERNELS_A_LAYER else f'Missed: up to {most}.'}\n"
        f"Waits: how often the {rows[0]['layers']} layers of a step make the host wait for the device; on CPU, "
        "operations that would.",
        table(header, lines),
    ]


def device_kernels(measurement: Measurement) -> str:
    """Kernels of whole steps on CUDA, and how many a person adds to each layer."""
    counts = {int(people): count for people, count in measurement["device_kernels"].items()}
    layers = measurement["kernels"][0]["layers"] if measurement["kernels"] else 16
    lines = [
        ["unpatched" if n == UNPATCHED else str(n), str(count), f"{(count - counts[0]) / layers:.1f}" if n > 0 else "-"]
        for n, count in counts.items()
    ]
    title = f"CUDA kernels of a step without layout boost, attention {attention_name(measurement)}:"
    return f"{title}\n\n{table(('people', 'kernels', 'added a layer'), lines)}"


def spread(values: list[float], form: str) -> str:
    """The median, with the smallest and largest in brackets."""
    return f"{form} ({form} to {form})".format(median(values), min(values), max(values))


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))


# --- figures and plot ------------------------------------------------------------------------------------------------


def write_csv(path: Path, measurements: list[Measurement]) -> None:
    """Writes a line per measured step. Times in seconds, memory in bytes; -1 people means the unpatched model."""
    rows = [{"attention": m["machine"]["attention"], **row} for m in measurements for row in m["steps"]]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def plot(path: Path, measurements: list[Measurement]) -> None:
    """Plots overhead by number of people, a panel for each size. Bars: smallest to largest step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = list(dict.fromkeys(row["size"] for measurement in measurements for row in measurement["steps"]))
    figure, panels = pyplot.subplots(
        1, len(sizes), figsize=(1 + 3.6 * len(sizes), 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, size in zip(panels[0], sizes, strict=True):
        draw_panel(panel, size, measurements)
    panels[0][0].set_ylim(bottom=0)  # of all panels, once everything is drawn
    panels[0][0].set_ylabel("overhead over the merged model, %")
    panels[0][0].legend(fontsize="small", loc="lower left")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_panel(panel: Any, size: int, measurements: list[Measurement]) -> None:
    """Draws one size: a line for each kind of attention, and the target."""
    for measurement in measurements:
        rows = [row for row in measurement["steps"] if row["size"] == size and row["people"] > 0]
        people = sorted({row["people"] for row in rows})
        middle, low, high = (
            [pick(overhead(row) for row in rows if row["people"] == n) for n in people] for pick in PICKS
        )
        bars = [[m - s for m, s in zip(middle, low, strict=True)], [t - m for m, t in zip(middle, high, strict=True)]]
        panel.errorbar(people, middle, bars, marker="o", capsize=3, label=attention_name(measurement))
    wanted = target(measurements[0]["machine"]["device"], size)
    if wanted is not None:
        panel.axhline(wanted, color="grey", linestyle="--", label="target")
    panel.set(title=f"{size} x {size} pixels", xlabel="people")
    panel.set_xticks(sorted({row["people"] for m in measurements for row in m["steps"] if row["people"] > 0}))


PICKS: tuple[Callable[[Iterable[float]], float], ...] = (median, min, max)
