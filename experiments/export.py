"""The network of a run, a policy or a classifier, as a Hugging Face folder for transformers.

`python -m experiments.export --run DIR/runs/NAME --output FOLDER`

Low-rank adapters are merged into the weights, or with `--adapters` saved alone, for `peft`.
"""

import json
import pathlib

from absl import flags
from ml_collections import ConfigDict

from vbon_jax import cli
from vbon_jax.models import lora
from vbon_jax.models.huggingface import model_folder
from vbon_jax.training import loop, methods, sharding
from vbon_jax.types import InputError

RUN = flags.DEFINE_string("run", None, "Folder of a run, WORKDIR/runs/NAME.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
ADAPTERS = flags.DEFINE_bool("adapters", False, "Write the adapters alone, as peft reads them.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")


def main() -> None:
    """Restore the checkpoint and save it with the tokenizer and settings that it began with."""
    run = pathlib.Path(RUN.value)
    if not (run / "config.json").is_file():
        raise InputError(f"--run={run}: there is no config.json; give the folder of a run")
    config = ConfigDict(json.loads((run / "config.json").read_text()))
    kind = methods.method(config.method).network
    if ADAPTERS.value and (kind != "decoder" or not config.policy.lora.pattern):
        raise InputError(f"--adapters: {run} has no policy with policy.lora; leave the flag out")
    source = model_folder.load(config.policy.path, kind=kind)
    model, params = loop.with_adapters(config, source.config, source.params, config.policy.path)
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    task = methods.Task(config=config, model=model, mesh=mesh)
    params = loop.restore(run, which=CHECKPOINT.value, task=task, network=params)
    if ADAPTERS.value:
        lora.save(
            OUTPUT.value,
            model,
            params,
            settings=source.settings,
            base=config.policy.path,
        )
        return
    tokenizer = model_folder.load_tokenizer(config.policy.path)
    model, params = lora.merge(model, params)
    model_folder.save(
        OUTPUT.value,
        model,
        params,
        settings=source.settings,
        tokenizer=tokenizer,
        eos_token_ids=source.eos_token_ids,
    )


if __name__ == "__main__":
    cli.run(main, required=("run", "output"))
