"""Model folders that hold what no model is read from in silence, and such that are complete.

Right: a refusal in one line that names the file, the tensor or the field, and the remedy; or, for
`COMPLETE`, the parameters that transformers reads.
"""

import numpy as np

NAN, INFINITY = np.float32("nan"), np.float32("inf")


def _with(name: str, value: np.float32, at: int = -1):
    def change(tensors: dict) -> dict:
        changed = tensors[name].copy()
        changed.flat[at] = value
        return tensors | {name: changed}

    return change


def _in_half_precision(tensors: dict) -> dict:
    """float16 holds numbers up to 65504."""
    with np.errstate(over="ignore"):
        return tensors | {
            "transformer.wte.weight": (tensors["transformer.wte.weight"] * 1e6).astype(np.float16)
        }


def _prefixed(prefix: str):
    return lambda tensors: {f"{prefix}{name}": value for name, value in tensors.items()}


# Of a tied GPT-2: what becomes of its tensors, and the words of the refusal.
WEIGHTS = {
    "a NaN": (
        _with("transformer.h.1.mlp.c_fc.weight", NAN),
        "model.safetensors: transformer.h.1.mlp.c_fc.weight has 1 values | of 60; fetch",
    ),
    "an infinity": (_with("transformer.ln_f.bias", -INFINITY, 0), "transformer.ln_f.bias has 1 "),
    "infinities of both signs": (
        lambda tensors: _with("transformer.wpe.weight", INFINITY, 0)(
            _with("transformer.wpe.weight", -INFINITY)(tensors)
        ),
        "transformer.wpe.weight has 2 values",
    ),
    "an overflow of half precision": (_in_half_precision, "transformer.wte.weight has "),
    "DistributedDataParallel": (
        _prefixed("module."),
        "but module.transformer.wte.weight; | 'module.'",
    ),
    "torch.compile": (_prefixed("_orig_mod."), "take the prefix '_orig_mod.' off all names"),
    "peft": (_prefixed("base_model.model."), "take the prefix 'base_model.model.' off"),
    "trl's value head": (_prefixed("pretrained_model."), "the prefix 'pretrained_model.' off"),
    "FSDP": (_prefixed("_fsdp_wrapped_module."), "the prefix '_fsdp_wrapped_module.' off"),
}

COMPLETE = {
    "as it is": lambda tensors: tensors,
    "the head of a tied model in place of its embeddings": lambda tensors: {
        name if name != "transformer.wte.weight" else "lm_head.weight": value
        for name, value in tensors.items()
    },
    "both, equal": lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"]},
    "large values that add up to infinity": lambda tensors: _with(
        "transformer.ln_f.bias", np.float32(3e38)
    )(_with("transformer.ln_f.bias", np.float32(3e38), 0)(tensors)),
}

# Fields of a GPT-2's config.json (23 tokens), and the words of the refusal.
FIELDS = {
    "the default EOS of GPT-2": ({"eos_token_id": 50256}, "eos_token_id = 50256 | of 23 tokens"),
    "the default BOS of GPT-2": ({"bos_token_id": 50256}, "bos_token_id = 50256 | of 23 tokens"),
    "one of several": ({"eos_token_id": [3, 23]}, "eos_token_id = [3, 23] | correct it"),
    "padding behind the embedding": ({"pad_token_id": 23}, "pad_token_id = 23 | outside of the"),
    "a negative BOS": ({"bos_token_id": -1}, "bos_token_id = -1 | outside of the vocabulary"),
    "pruned heads": ({"pruned_heads": {"0": [1]}}, "pruned_heads | not supported"),
    "attention to later tokens": ({"is_causal": False}, "is_causal = false | later tokens"),
    "labels that contradict": (
        {"id2label": {"0": "bad", "1": "good"}, "label2id": {"good": 0, "bad": 1},
         "architectures": ["GPT2ForSequenceClassification"]},
        "label2id | contradicts id2label",
    ),
    "two labels of one name": (
        {"id2label": {"0": "good", "1": "good"},
         "architectures": ["GPT2ForSequenceClassification"]},
        "id2label | a name of its own",
    ),
}  # fmt: skip

# Files that appear in a folder, and the words of the refusal.
FILES = {
    "adapter_config.json": "adapter_config.json: an adapter | merge it into its model",
    "adapter_model.safetensors": "adapter_model.safetensors: an adapter | merge it",
    "adapter_model.bin": "adapter_model.bin: an adapter | take it out",
    "model.safetensors.index.json": "both model.safetensors and model.safetensors.index.json",
}
