"""The exact lab: `python -m experiments.exact`.

A policy so small that all its responses are enumerated. Every method trains on it by the step that
every run takes, with exact gradients or sampled, and is held against Best-of-N by sums over all
responses. It writes, in the workdir, `results.csv`, `optima.csv` (where each objective is minimal
in theory, and that the code gets there), `cdf.csv` (what an estimate of log F costs), figures, and
prints a table. The same command goes on where it stopped.
"""

import csv
import pathlib

import altair as alt

from vbon_jax.exact.grid import EXACT
from vbon_jax.report import style

COLUMNS = ("method", "n", "gradient", "ties", "kl_to_bon", "kl_from_bon", "kl_to_ref", "win_rate",
           "entropy")  # fmt: skip
WANTED = 1e-3  # nats: vBoN's exact bound by exact gradients from Best-of-N
LEFT = 1e-3  # share of an objective's height above its minimum that counts as none
FAR = 1e-2  # nats that count as some, where that little is left


def write(rows: list[dict], path: pathlib.Path) -> None:
    """Rows of the same columns as CSV; truths as yes and no."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: ("no", "yes")[v] if isinstance(v, bool) else v for k, v in row.items()}
            )


def optima_rows(rows: list[dict]) -> list[dict]:
    """The rows of `optima.csv`, one for each cell with exact gradients."""
    return [
        {key: row[key] for key in ("method", "n", "ties")} | row["theory"]
        for row in rows
        if "theory" in row
    ]


def table(rows: list[dict]) -> str:
    """KL(pi || pi_BoN) in nats, method x N, without ties and with them."""
    found = {
        (row["method"], row["gradient"], row["ties"], row["n"]): row["kl_to_bon"] for row in rows
    }
    names = list(dict.fromkeys((row["method"], row["gradient"]) for row in rows))
    columns = list(dict.fromkeys((row["ties"], row["n"]) for row in rows))
    columns.sort()
    head = [f"{'ties ' if ties else ''}N={n}".rjust(11) for ties, n in columns]
    lines = ["KL(policy || Best-of-N), nats".ljust(30) + "".join(head)]
    for method, gradient in names:
        cells = [f"{found[method, gradient, *column]:11.2e}" for column in columns]
        lines.append(f"{method:20s}{gradient:10s}" + "".join(cells))
    return "\n".join(lines)


def verdicts(rows: list[dict], optima: list[dict]) -> list[str]:
    """What the numbers say of the mathematics, in sentences."""
    lines = []
    vbon = [row for row in rows if (row["method"], row["gradient"]) == ("vbon", EXACT)]
    if vbon:
        worst = max(row["kl_to_bon"] for row in vbon)
        word = "within" if worst <= WANTED else "NOT within"
        lines.append(
            f"vbon by exact gradients: {word} {WANTED:g} nats of Best-of-N at every N, "
            f"with and without ties (largest {worst:.1e})"
        )
    there = [row for row in optima if row["left"] <= LEFT]
    lines.append(
        f"{len(there)} of {len(optima)} cells reach the minimum of their objective (at most "
        f"{LEFT:g} of its height above it is left)"
    )
    for row in there:
        if row["kl_theory_to_code"] > FAR:
            lines.append(
                f"  {row['method']} N={row['n']}{' ties' if row['ties'] else ''}: with only "
                f"{row['left']:.1e} left {row['kl_theory_to_code']:.2g} nats from its minimum,"
                " so flat is the objective"
            )
    return lines


def figure(rows: list[dict]) -> alt.TopLevelMixin:
    """KL to Best-of-N against N, exact and sampled, without ties and with them."""
    shown = {"vbon": "vbon (exact)", "vbon_l1": "vbon (l1)"}
    points = [
        {
            "method": shown.get(row["method"], row["method"]),
            "n": row["n"],
            "kl": max(row["kl_to_bon"], 1e-6),
            "gradient": row["gradient"],
            "ties": f"{'tied' if row['ties'] else 'distinct'} rewards, {row['gradient']} gradients",
        }
        for row in rows
        if row["method"] not in ("best_of_n", "reference")
    ]
    looks = style.looks(list(dict.fromkeys(point["method"] for point in points)))
    panels = []
    for gradient in dict.fromkeys(point["gradient"] for point in points):
        own = [point for point in points if point["gradient"] == gradient]
        chart = alt.Chart(alt.Data(values=own), width=300, height=240).encode(
            x=alt.X("n:Q", title="N", scale=alt.Scale(type="log", base=2)),
            y=alt.Y("kl:Q", title="KL to Best-of-N (nats, from 1e-6)", scale=alt.Scale(type="log")),
            color=style.colour(looks),
            shape=style.shape(looks),
        )
        layers = chart.mark_line() + chart.mark_point(filled=True, size=60)
        panels.append(layers.facet(column=alt.Column("ties:N", title=None)))
    return alt.vconcat(*panels)


def cdf_figure(rows: list[dict]) -> alt.Chart:
    """Error of log F, distance of the laws, and what they cost at the largest N, against M."""
    most = max(row["n"] for row in rows)
    titles = {
        "rmse": "error of log F (nats, root mean square)",
        "ks": "Kolmogorov-Smirnov distance",
        "kl_to_bon": f"KL to Best-of-N of what is learnt, N={most} (nats)",
    }
    points = [
        {"estimator": row["estimator"], "m": row["m"], "measure": title, "value": row[name]}
        | {"ties": "ties" if row["ties"] else "distinct rewards"}
        for row in rows
        if row["n"] == most
        for name, title in titles.items()
    ]
    log = alt.Scale(type="log")
    chart = alt.Chart(alt.Data(values=points), width=240, height=180).mark_line(point=True)
    chart = chart.encode(
        x=alt.X("m:Q", title="reference samples (M)", scale=alt.Scale(type="log", nice=False)),
        y=alt.Y("value:Q", title=None, scale=log),
        color=alt.Color("estimator:N", title=None, scale=alt.Scale(range=list(style.PALETTE))),
    ).facet(row=alt.Row("ties:N", title=None), column=alt.Column("measure:N", title=None))
    return chart.resolve_scale(y="independent")
