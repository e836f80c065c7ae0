"""Variational Best-of-N alignment (vBoN), BoNBoN and the methods that they are compared with.

config      every configuration key, once          types, files  records, errors, artifacts
functional  the mathematics: arrays in and out     models        networks, Hugging Face folders
data        rows, prompts, pairs, batches          sampling      sampler, rewards, reference cache
training    methods, one loop, one step, budgets   evaluation    distances to Best-of-N, judges
workdir     the files of a working directory       study         the runs that share one
report      tables, figures and the page           exact         the lab without sampling
"""

import importlib.metadata
import os

__version__ = "0.1.0"

# On a CPU, XLA hands larger operations to a second library, which adds up in another order: the
# same text then has other log-probabilities in a batch of another size, by 1e-6 nats in float32
# and by tenths of a nat in bfloat16. It is read before the first computation. An unknown flag ends
# the process, so it is set for the releases that are known to have it.
_FLAG = "xla_cpu_experimental_ynn_fusion_type"
if importlib.metadata.version("jaxlib").startswith("0.10.") and _FLAG not in (
    _given := os.environ.get("XLA_FLAGS", "")
):
    os.environ["XLA_FLAGS"] = f"{_given} --{_FLAG}=".strip()
