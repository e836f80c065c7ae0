"""vbon_jax: variational Best-of-N alignment in JAX."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.*)"', (ROOT / "vbon_jax" / "__init__.py").read_text("utf-8")
)[1]

setuptools.setup(
    name="vbon_jax",
    version=VERSION,
    description="Variational Best-of-N alignment, BoNBoN and their rivals, in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The programs and recipes of the repository run from a clone and are not installed.
    packages=setuptools.find_packages(include=["vbon_jax", "vbon_jax.*"]),
    package_data={
        "vbon_jax": ["py.typed"],
        "vbon_jax.data": ["*.txt"],
        "vbon_jax.report": ["*.jinja", "*.css", "*.js"],
    },
    install_requires=[
        "absl-py>=2.3",
        "altair>=6.0",
        "datasets>=5.2",
        "filelock>=3.20",
        "flax>=0.12.8",
        "huggingface-hub>=1.0",
        "jax>=0.10.2",
        "jinja2>=3.1",
        "ml-collections>=1.1",
        "numpy>=2.3",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "protobuf>=5.29",
        "pyarrow>=22.0",
        "safetensors>=0.7",
        "scipy>=1.16",
        "sentencepiece>=0.2.1",
        "tensorboardX>=2.6.4",
        "tokenizers>=0.23",
        "tqdm>=4.67",
        "transformers>=5.23",
        "vl-convert-python>=1.9",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "test": [
            "hypothesis>=6.150",
            "mpmath>=1.3",
            "peft>=0.21",
            "playwright>=1.58",
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff>=0.14",
            "torch>=2.13",
        ],
    },
)
