"""How many reference samples a prompt needs: `python -m experiments.cdf_study --workdir DIR`.

Of every prompt's M cached rewards one half is held out, a large sample of the true law; the other
gives sub-samples of size m. It writes `cdf_study.csv` and `cdf_study.svg` in the workdir, for each
cache in `DIR/references`, and prints the table.
"""

import pathlib

from absl import flags

from vbon_jax import cli, files
from vbon_jax.exact import cdf_study
from vbon_jax.report import style
from vbon_jax.sampling import reference_cache
from vbon_jax.types import InputError


def study(workdir: pathlib.Path, *, seed: int) -> None:
    """Study every reference cache of a working directory."""
    folders = sorted(path.parent for path in workdir.glob("references/*/stage.json"))
    if not folders:
        raise InputError(f"{workdir} has no reference cache; build one with experiments.collect")
    rows = [
        {"cache": folder.name} | row
        for folder in folders
        for row in cdf_study.study(reference_cache.load(folder).rewards_pm, seed=seed)
    ]
    with files.lock(workdir, waits=True):
        files.write_csv(workdir / "cdf_study.csv", rows, list(rows[0]))
        style.save(cdf_study.study_figure(rows), workdir / "cdf_study.svg")
    for row in rows:
        print(
            f"{row['cache']:6s} {row['law']:16s} m {row['m']:4d}  rejected {row['rejected']:.3f} "
            f"[{row['rejected_lo']:.3f}, {row['rejected_hi']:.3f}]  distance "
            f"{row['distance']:.3f} [{row['distance_lo']:.3f}, {row['distance_hi']:.3f}]"
        )
    print(f"{workdir / 'cdf_study.csv'}\n{workdir / 'cdf_study.svg'}")


if __name__ == "__main__":
    WORKDIR = cli.define_workdir("Folder of a comparison, with its caches.")
    SEED = flags.DEFINE_integer(
        "seed", 0, "Of the split and of the bootstrap.", lower_bound=0, upper_bound=2**32 - 1
    )
    cli.run(lambda: study(WORKDIR.value, seed=SEED.value), required=("workdir",), devices=False)
