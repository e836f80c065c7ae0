"""How a family of Hugging Face models is read: its config.json, and the names of its tensors.

The families themselves are in `gpt.py`, `llama.py` and `bert.py`. These files and
`model_folder.py` are the only ones that know foreign tensor and field names.
"""

import copy
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from vbon_jax.models import layers
from vbon_jax.models.decoder import DecoderConfig, Rope
from vbon_jax.models.encoder import EncoderConfig
from vbon_jax.types import InputError

Config = DecoderConfig | EncoderConfig

ROPES = ("default", "linear", "llama3")
# Fields that say nothing of the network; transformers would convert some, and import torch for it.
NOT_OF_THE_NETWORK = ("model_type", "architectures", "dtype", "torch_dtype", "auto_map")
NOT_OF_THE_NETWORK += ("id2label", "label2id", "num_labels", "bos_token_id", "eos_token_id")
NOT_OF_THE_NETWORK += ("transformers_version", "_name_or_path")
TYPES = {
    "int": "a whole number",
    "float": "a number with a decimal point",
    "bool": "true or false",
    "str": "a text",
}
TYPES |= {"list": "a list", "dict": "an object", "NoneType": "null"}
# transformers' validators, and the field that each is about.
VALIDATORS = {"architecture": "num_attention_heads", "layer_type": "layer_types"}
VALIDATORS |= {"rope": "rope_parameters"}


class Tensor(NamedTuple):
    """One foreign tensor: ours (`paths`) joined along the last axis, then maybe transposed.

    With `heads` they are joined head by head: the first head of each, then the second of each.
    """

    name: str
    paths: tuple[str, ...]  # "layer_0/attention/query/kernel"
    transposed: bool = False
    heads: int = 1
    copy: bool = False  # of a tensor named before it: may exist, must agree, is not written


class Family(NamedTuple):
    """How one `model_type` is read and written."""

    architectures: dict[str, tuple[str, ...]]  # by kind, decoder | classifier; first = as written
    prefix: str  # that a folder of the bare network leaves out
    ignored: re.Pattern  # tensors that hold no parameter of the network
    read_config: Callable[["Fields"], Config]  # of a classifier: `labels` are set afterwards
    tensors: Callable[[Any], Iterator[Tensor]]


# ---------------------------------------------------------------------------------------- fields


class Fields(NamedTuple):
    """A config.json with checks: an error names the file, the field, its value and the remedy."""

    file: pathlib.Path
    settings: Mapping[str, Any]  # what the file says
    config: Any  # transformers' configuration: older names and defaults are in one form

    def error(self, name: str, remedy: str) -> InputError:
        """An InputError about a field, under the name that this family's files give it."""
        name = self.config.attribute_map.get(name, name)
        value = self.settings.get(name, getattr(self.config, name, None))
        return field_error(self.file, name, value, remedy)

    def size(self, name: str, *, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = getattr(self.config, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(name, f"give a whole number of at least {least}")
        return value

    def positive(self, name: str) -> float:
        """A number above 0."""
        value = getattr(self.config, name)
        if not value > 0:
            raise self.error(name, "give a number above 0")
        return float(value)

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of the choices, or the default where the file does not say."""
        value = getattr(self.config, name, default)
        if value not in choices:
            raise self.error(name, f"not supported; use a model with one of {', '.join(choices)}")
        return value

    def activation(self, name: str) -> str:
        """The name of an activation function."""
        return self.choice(name, tuple(layers.ACTIVATIONS), "")

    def refuse(self, name: str, what: str) -> None:
        """InputError where an option is set that would change the network, and that we lack."""
        if self.settings.get(name):
            raise self.error(name, f"{what} is not supported; use a model without it")

    def sizes(self) -> dict[str, Any]:
        """The fields that the config.json of every family has, by our names."""
        width, heads = self.size("hidden_size"), self.size("num_attention_heads")
        derived = getattr(self.config, "head_dim", None) in (None, width // heads)
        if width % heads and derived and not self.settings.get("head_dim"):
            raise self.error(
                "num_attention_heads", f"the width {width} is not a multiple of it; correct either"
            )
        return {
            "vocab_size": self.size("vocab_size"),
            "width": width,
            "num_layers": self.size("num_hidden_layers"),
            "num_heads": heads,
            "max_positions": self.size("max_position_embeddings"),
            "initializer_std": self.positive("initializer_range"),
        }

    def causal_sizes(self) -> dict[str, Any]:
        """`sizes` of a decoder; InputError where it is to read later tokens."""
        if self.settings.get("is_causal") is False:
            raise self.error("is_causal", "attention to later tokens is not supported; take it out")
        return self.sizes()

    def rope(self, table: Any, *, partial: bool = False) -> Rope:
        """A table of rotary positions in transformers' form; `partial` where it may turn a part."""
        name = "rope_scaling" if self.settings.get("rope_scaling") else "rope_parameters"
        kind = table.get("rope_type")
        if kind not in ROPES:
            raise self.error(name, f"rope type {kind!r} is not supported; use {', '.join(ROPES)}")

        def positive(key: str, default: float | None = None) -> float:
            value = table.get(key, default)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise self.error(name, f"give {key}, a number above 0")
            return float(value)

        fraction = positive("partial_rotary_factor", 1.0)
        if fraction != 1 and not partial:
            raise self.error("partial_rotary_factor", "this family turns whole heads; take it out")
        long_context = None
        if kind == "llama3":
            turns = positive("low_freq_factor"), positive("high_freq_factor")
            long_context = (*turns, int(positive("original_max_position_embeddings")))
        return Rope(
            theta=positive("rope_theta"),
            fraction=fraction,
            factor=1.0 if kind == "default" else positive("factor"),
            long_context=long_context,
        )


def field_error(file: pathlib.Path, name: str, value: Any, remedy: str) -> InputError:
    """An InputError about one field of a JSON file."""
    return InputError(f"{file}: {name} = {json.dumps(value)}: {remedy}")


def read_fields(file: pathlib.Path, settings: Mapping[str, Any]) -> Fields:
    """The settings of a config.json as transformers understands them; no code of a folder is run.

    Raises InputError where transformers refuses them.
    """
    from transformers import AutoConfig

    told = {name: value for name, value in settings.items() if name not in NOT_OF_THE_NETWORK}
    told |= {"bos_token_id": None, "eos_token_id": None}  # the defaults are of a large vocabulary
    try:
        # A copy, because transformers writes defaults into the tables that it is given.
        config = AutoConfig.for_model(settings["model_type"], **copy.deepcopy(told))
    except Exception as error:  # whatever the validators of transformers and the hub raise
        raise _refusal(file, settings, error) from error
    return Fields(file, settings, config)


def _refusal(file: pathlib.Path, settings: Mapping[str, Any], error: Exception) -> InputError:
    """An error of transformers' validators in one line."""
    reason = " ".join(str(error.args[0] if error.args else error).split())
    wrong_type = re.match(r"Validation error for field '(\w+)':", reason)
    if wrong_type:
        expected = dict.fromkeys(re.findall(r"expected (?:a )?(\w+)", reason))
        remedy = "give " + " or ".join(TYPES.get(name, name) for name in expected)
        return field_error(file, wrong_type[1], settings.get(wrong_type[1]), remedy)
    validator = re.match(
        r"Class validation error for validator 'validate_(\w+)': \w+: (.*)", reason
    )
    if validator:
        name = VALIDATORS.get(validator[1], validator[1])
        remedy = f"{validator[2].rstrip('.')}; correct it"
        return field_error(file, name, settings.get(name), remedy)
    return InputError(f"{file}: {reason}; correct it")


# --------------------------------------------------------------------------------------- tensors


def dense(name: str, path: str, *, transposed: bool = True, bias: bool = True) -> Iterator[Tensor]:
    """Weight and bias of a dense layer, which torch keeps as [outputs, inputs]."""
    yield Tensor(f"{name}.weight", (f"{path}/kernel",), transposed)
    if bias:
        yield Tensor(f"{name}.bias", (f"{path}/bias",))


def norm(name: str, path: str, *, bias: bool = True) -> Iterator[Tensor]:
    """Scale and bias of a norm."""
    yield Tensor(f"{name}.weight", (f"{path}/scale",))
    if bias:
        yield Tensor(f"{name}.bias", (f"{path}/bias",))


def head(config: DecoderConfig, name: str = "lm_head") -> Iterator[Tensor]:
    """The head on the last hidden state: a classifier's scores, or the next token's logits."""
    if config.labels:
        yield Tensor("score.weight", ("score/kernel",), transposed=True)
    elif config.tie_embeddings:
        yield Tensor(f"{name}.weight", ("tokens/embedding",), copy=True)
    else:
        yield Tensor(f"{name}.weight", ("head/kernel",), transposed=True)


def family(
    stem: str,
    prefix: str,
    ignored: str,
    read_config: Callable[[Fields], Config],
    tensors: Callable[[Any], Iterator[Tensor]],
    *,
    decoder: bool = False,
    classifier: str = "",
) -> Family:
    """A family by the stem of its architectures' names.

    `ignored` is a regular expression of tensors that its folders may hold beside the network's;
    `classifier` is what the name of its classifier adds to the stem.
    """
    architectures = {"classifier": (f"{stem}{classifier}ForSequenceClassification",)}
    if decoder:
        language_model = f"{stem}LMHeadModel" if stem == "GPT2" else f"{stem}ForCausalLM"
        architectures = {"decoder": (language_model, f"{stem}Model")} | architectures
    return Family(architectures, prefix, re.compile(ignored), read_config, tensors)
