"""A run's policy as a Hugging Face folder that transformers loads.

`python -m experiments.export --run DIR/runs/NAME --output FOLDER`
"""

import json
import pathlib

from absl import flags
from ml_collections import ConfigDict

from experiments import cli, train
from vbon_jax.models import hub
from vbon_jax.train import methods, parallel
from vbon_jax.types import InputError

RUN = flags.DEFINE_string("run", None, "Folder of a run, WORKDIR/runs/NAME.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")


def main() -> None:
    """Restore the checkpoint and save it beside the reference policy's tokenizer and settings."""
    run = pathlib.Path(RUN.value)
    if not (run / "config.json").is_file():
        raise InputError(f"--run={run}: there is no config.json; give the folder of a run")
    config = ConfigDict(json.loads((run / "config.json").read_text()))
    source = hub.load(config.policy.path, kind="decoder")
    mesh = parallel.make_mesh(data=-1, fsdp=1)
    task = methods.Task(config=config, model=source.config, mesh=mesh)
    params = train.restore(run, which=CHECKPOINT.value, task=task, network=source.params)
    tokenizer = hub.load_tokenizer(config.policy.path)
    hub.save(
        OUTPUT.value,
        source.config,
        params,
        settings=source.settings,
        tokenizer=tokenizer,
        eos_token_ids=source.eos_token_ids,
    )


if __name__ == "__main__":
    cli.run(main, required=("run", "output"))
