"""What the server of `tests/forked.py` imports, once: all that programs need but themselves.

There is no torch in it, which users need not have; transformers would import it.
"""

import importlib
import sys
import warnings
from importlib.machinery import PathFinder

NEEDED = (
    "altair",
    "jinja2",
    "vl_convert",
    "vbon_jax.evaluation.measures",
    "vbon_jax.training.methods",
)
NEEDED += (
    "vbon_jax.training.methods",
    "vbon_jax.training.checkpoints",
    "vbon_jax.training.logs",
    "transformers",
)


class WithoutTorch(PathFinder):
    """Finds what is installed but for torch."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname == "torch" else super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
warnings.filterwarnings("ignore", r"os\.fork\(\) was called")  # no thread runs here
for name in NEEDED:
    importlib.import_module(name)
assert sys.modules["transformers"].AutoTokenizer  # imports most of it
