"""The exact lab's results as rows of files, a table, sentences and a figure."""

import pathlib

import altair as alt

from vbon_jax import files
from vbon_jax.exact.grid import EXACT
from vbon_jax.report import style

COLUMNS = ("method", "n", "gradient", "ties", "kl_to_bon", "kl_from_bon", "kl_to_ref", "win_rate",
           "entropy")  # fmt: skip
TOLERANCE = 1e-3  # nats: vBoN's exact bound by exact gradients from Best-of-N
LEFT = 1e-3  # share of an objective's height above its minimum that counts as none
FAR = 1e-2  # nats that count as some, where that little is left
SHOWN_AS = {"vbon": "vbon (exact)", "vbon_l1": "vbon (l1)"}


def write(rows: list[dict], path: pathlib.Path) -> None:
    """Rows of the same columns as CSV; booleans as yes and no."""
    written = [
        {name: ("no", "yes")[value] if isinstance(value, bool) else value
         for name, value in row.items()}
        for row in rows
    ]  # fmt: skip
    files.write_csv(path, written, list(rows[0]))


def optima_rows(rows: list[dict]) -> list[dict]:
    """The rows of `optima.csv`: cells with exact gradients whose minimum is known in theory."""
    return [
        {key: row[key] for key in ("method", "n", "ties")} | row["theory"]
        for row in rows
        if row.get("theory")
    ]


def table(rows: list[dict]) -> str:
    """KL(pi || pi_BoN) in nats, method x N, without ties and with them."""
    kl = {(row["method"], row["gradient"], row["ties"], row["n"]): row["kl_to_bon"] for row in rows}
    names = list(dict.fromkeys((row["method"], row["gradient"]) for row in rows))
    columns = sorted({(row["ties"], row["n"]) for row in rows})
    head = [f"{'ties ' if ties else ''}N={n}".rjust(11) for ties, n in columns]
    lines = ["KL(policy || Best-of-N), nats".ljust(30) + "".join(head)]
    for method, gradient in names:
        cells = [f"{kl[method, gradient, *column]:11.2e}" for column in columns]
        lines.append(f"{method:20s}{gradient:10s}" + "".join(cells))
    return "\n".join(lines)


def conclusions(rows: list[dict], optima: list[dict]) -> list[str]:
    """Whether vBoN is Best-of-N, and which objectives are trained to their minima; sentences."""
    lines = []
    vbon = [row for row in rows if (row["method"], row["gradient"]) == ("vbon", EXACT)]
    if vbon:
        worst = max(row["kl_to_bon"] for row in vbon)
        word = "within" if worst <= TOLERANCE else "NOT within"
        lines.append(
            f"vbon by exact gradients: {word} {TOLERANCE:g} nats of Best-of-N at every N, "
            f"with and without ties (largest {worst:.1e})"
        )
    trained = [row for row in optima if row["left"] <= LEFT]
    lines.append(
        f"{len(trained)} of {len(optima)} cells reach the minimum of their objective (at most "
        f"{LEFT:g} of its height above it is left)"
    )
    for row in trained:
        if row["kl_theory_to_code"] > FAR:
            lines.append(
                f"  {row['method']} N={row['n']}{' ties' if row['ties'] else ''}: with only "
                f"{row['left']:.1e} left {row['kl_theory_to_code']:.2g} nats from its minimum,"
                " so flat is the objective"
            )
    return lines


def figure(rows: list[dict]) -> alt.Chart:
    """KL to Best-of-N against N, exact and sampled, without ties and with them."""
    points = [
        {
            "method": SHOWN_AS.get(row["method"], row["method"]),
            "n": row["n"],
            "kl": max(row["kl_to_bon"], 1e-6),
            "gradient": f"{row['gradient']} gradients",
            "ties": f"{'tied' if row['ties'] else 'distinct'} rewards",
        }
        for row in rows
        if row["method"] not in ("best_of_n", "reference")
    ]
    looks = style.looks(point["method"] for point in points)
    chart = alt.Chart(alt.Data(values=points), width=300, height=240).encode(
        x=alt.X("n:Q", title="N", scale=alt.Scale(type="log", base=2)),
        y=alt.Y("kl:Q", title="KL to Best-of-N (nats, from 1e-6)", scale=alt.Scale(type="log")),
        color=style.colour(looks),
        shape=style.shape(looks),
    )
    lines = chart.mark_line() + chart.mark_point(filled=True, size=60)
    return style.panels(lines, "gradient", "ties")
