"""Tokens per second of the sampler beside transformers' `generate`: same checkpoint, same work.

    python benchmarks/sampling.py --model=DIR --batch=64 --new_tokens=40

Both draw `--new_tokens` tokens (no early stop) at temperature 1 for `--batch` distinct prompts of
`--prompt_tokens` random tokens, one sample a prompt, in float32, with as many threads each: the
rows are split over all devices, and a CPU counts as one device a core (`--devices`). Runs
alternate, ours and theirs, after a warm-up of each; the ratio is the median of the rounds' own
ratios, so that a load on the machine falls on both sides of it. The last line is JSON.
"""

import json
import math
import os
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags

from vbon_jax.models import sharding
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import sampler
from vbon_jax.types import Prompts

MODEL = flags.DEFINE_string("model", None, "folder of a decoder's checkpoint", required=True)
BATCH = flags.DEFINE_integer("batch", 64, "prompts in a batch", lower_bound=1)
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 40, "tokens drawn for each", lower_bound=1)
PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 8, "tokens in a prompt", lower_bound=1)
DEVICES = flags.DEFINE_integer(
    "devices", 0, "devices to see in a CPU; 0 = one a core, as far as they divide the batch"
)
ROUNDS = flags.DEFINE_integer("rounds", 9, "timed runs of each side", lower_bound=1)


def make_ours(model: str, tokens_bp: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
    """A function that samples once and returns the new tokens [B, G]."""
    checkpoint = model_folder.load(model, kind="decoder")
    batch, width = tokens_bp.shape
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    params = sharding.place(checkpoint.params, mesh)
    prompts = sharding.shard_rows(Prompts(tokens_bp, np.full((batch,), width, np.int32)), mesh)
    keys_b = sharding.shard_rows(sampler.prompt_keys(jax.random.key(0), np.arange(batch)), mesh)
    sampling = sampler.Sampling(max_new_tokens=new_tokens)

    def run() -> np.ndarray:
        samples = sampler.generate(
            checkpoint.config, params, prompts, keys_b, num_samples=1, sampling=sampling
        )
        return np.asarray(samples.tokens_bng)[:, 0]

    return run


def make_peer(model: str, tokens_bp: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
    """The same with transformers' `generate` in torch."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as XLA takes them
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    input_ids = torch.from_numpy(tokens_bp.astype(np.int64))
    settings = transformers.GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0,
    )

    def run() -> np.ndarray:
        with torch.inference_mode():
            output = network.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=settings,
            )
        return output[:, input_ids.shape[1] :].numpy()

    return run


def measure(ours: Callable, peer: Callable, *, rounds: int, shape: tuple[int, int]) -> np.ndarray:
    """Warm both up, check that both give tokens of `shape`, and time them in turn.

    Returns seconds [rounds, 2], ours and the peer's.
    """
    for run in (ours, peer):
        if run().shape != shape:
            raise RuntimeError(f"a run gave tokens of another shape than {shape}")
    seconds_r2 = np.zeros((rounds, 2))
    for row in seconds_r2:
        for side, run in enumerate((ours, peer)):
            start = time.perf_counter()
            run()
            row[side] = time.perf_counter() - start
    return seconds_r2


def summary(seconds_r2: np.ndarray, *, batch: int, new_tokens: int) -> dict:
    """The numbers of the JSON line; a ratio says how many times as fast as the peer we are."""
    ratios_r = seconds_r2[:, 1] / seconds_r2[:, 0]
    ours, peer = batch * new_tokens / np.median(seconds_r2, axis=0)
    return {
        "ratio": round(float(np.median(ratios_r)), 3),
        "ratio_min": round(float(ratios_r.min()), 3),
        "ratio_max": round(float(ratios_r.max()), 3),
        "tokens_per_second": round(float(ours), 1),
        "peer_tokens_per_second": round(float(peer), 1),
        "batch": batch,
        "new_tokens": new_tokens,
        "rounds": len(ratios_r),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "threads": len(os.sched_getaffinity(0)),
    }


def main(_) -> None:
    """Measure and print."""
    batch, new_tokens, width = BATCH.value, NEW_TOKENS.value, PROMPT_TOKENS.value
    cores = len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", DEVICES.value or math.gcd(batch, cores))
    vocab_size = model_folder.load(MODEL.value, kind="decoder").config.vocab_size
    rng = np.random.default_rng(0)
    tokens_bp = rng.integers(0, vocab_size, (batch, width), dtype=np.int32)
    seconds_r2 = measure(
        make_ours(MODEL.value, tokens_bp, new_tokens),
        make_peer(MODEL.value, tokens_bp, new_tokens),
        rounds=ROUNDS.value,
        shape=(batch, new_tokens),
    )
    numbers = summary(seconds_r2, batch=batch, new_tokens=new_tokens)
    print(
        f"{batch} distinct prompts of {width} tokens, one sample each, {new_tokens} new tokens, "
        f"float32, {numbers['threads']} threads, {numbers['devices']} x {numbers['device']}, "
        f"{numbers['rounds']} rounds in turn"
    )
    print(f"{'':14}{'tokens/s':>10}  {'runs, s':>18}")
    names = {"vbon_jax": "tokens_per_second", "transformers": "peer_tokens_per_second"}
    for (name, rate), seconds in zip(names.items(), seconds_r2.T, strict=True):
        print(f"{name:14}{numbers[rate]:>10,.0f}  {min(seconds):>8.3f} – {max(seconds):.3f}")
    print(
        f"{'ratio':14}{numbers['ratio']:>10.2f}  "
        f"{numbers['ratio_min']:>8.2f} – {numbers['ratio_max']:.2f}"
    )
    print(json.dumps(numbers))


if __name__ == "__main__":
    app.run(main)
