"""The network of a run, a policy or a classifier, as a Hugging Face folder for transformers.

`python -m experiments.export --run DIR/runs/NAME --output FOLDER`

Low-rank adapters are merged into the weights, or with `--adapters` saved alone, for `peft`.
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from vbon_jax import cli, files
from vbon_jax.config import defaults
from vbon_jax.data import reward_inputs
from vbon_jax.models import lora, sharding
from vbon_jax.models.huggingface import model_folder
from vbon_jax.study import materials, plan
from vbon_jax.training import loop, methods
from vbon_jax.types import InputError

FINGERPRINTS = ("policy fingerprint", "fingerprint")  # of the network, among a run's inputs


def export(
    run: pathlib.Path, output: pathlib.Path, *, base: str, adapters: bool, checkpoint: str
) -> None:
    """Restore a checkpoint and save it with the tokenizer and settings that it began with."""
    if not (run / "config.json").is_file():
        raise InputError(f"--run={run}: there is no config.json; give the folder of a run")
    config = ConfigDict(files.read_json(run / "config.json", *defaults()))
    method = methods.method(config.method)
    kind = method.network
    if adapters and (kind != "decoder" or not config.policy.lora.pattern):
        raise InputError(f"--adapters: {run} has no policy with policy.lora; leave the flag out")
    source = base or plan.recorded_folder(config[method.model].path, run)
    if not source:
        raise InputError(f"--run={run}: the run of a stage; its model is in {run.parent / 'model'}")
    record = (files.recorded(run) or {"inputs": {}})["inputs"]
    if model_folder.fingerprint(source) not in (record.get(name) for name in FINGERPRINTS):
        raise InputError(
            f"{source}: not the {method.model} that {run} began with, or it was changed since; "
            "restore it, name its folder by --base, or train again"
        )
    start, tokenizer = materials.load_network(config, source, kind=kind)
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    task = methods.Task(config=config, model=start.config, mesh=mesh)
    params = loop.restore(run, which=checkpoint, task=task, network=start.params)
    if adapters:
        lora.save(output, start.config, params, settings=start.settings, base=source)
        return
    model, params = lora.merge(start.config, params)
    taught = (files.recorded(run) or {"inputs": {}})["inputs"].get(reward_inputs.TAUGHT)
    reading = reward_inputs.Reading(**taught) if taught else None
    model_folder.save(
        output,
        model,
        params,
        settings=reward_inputs.recorded(start.settings, reading),
        tokenizer=tokenizer,
        eos_token_ids=start.eos_token_ids,
    )


if __name__ == "__main__":
    RUN = cli.define_path("run", "Folder of a run, WORKDIR/runs/NAME.")
    OUTPUT = cli.define_path("output", "Folder to write.", writes="folder")
    BASE = flags.DEFINE_string("base", "", "Folder of the model it began with, if that was moved.")
    ADAPTERS = flags.DEFINE_bool("adapters", False, "Write the adapters alone, as peft reads them.")
    CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")
    cli.run(
        lambda: export(
            RUN.value,
            OUTPUT.value,
            base=BASE.value,
            adapters=ADAPTERS.value,
            checkpoint=CHECKPOINT.value,
        ),
        required=("run", "output"),
    )
