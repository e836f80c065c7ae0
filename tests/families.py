"""Random models of every family, made by transformers, in shapes that differ in all that may."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.models import classifier, decoder
from vbon_jax.models.huggingface import model_folder

# One program is compiled faster than its operations one by one.
forward = jax.jit(decoder.forward, static_argnums=0)

BASE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 61}
BASE |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 48}
BASE |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 1000.0}
ALL_TURNED = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}
FIRST_WINDOWED = ["sliding_attention", "full_attention"]
BY_LAYER = {"full_attention": LINEAR}
BY_LAYER |= {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
GPT2 = {"n_embd": 24, "n_head": 3, "n_layer": 2, "vocab_size": 57, "n_positions": 48}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# model_type -> name of a shape -> what its config.json says beside the defaults of transformers.
gpt2, base = functools.partial(dict, GPT2), functools.partial(dict, BASE)
DECODERS = {
    "gpt2": {
        "tied": GPT2,
        "untied, odd widths": gpt2(
            n_embd=21, n_inner=37, tie_word_embeddings=False, activation_function="gelu"
        ),
        "scores by layer, unscaled": gpt2(
            scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False
        ),
    },
    "gpt_neox": {
        "parallel, a quarter turned": base(hidden_size=32),
        "in turn, all turned, tied": base(
            use_parallel_residual=False, rope_parameters=ALL_TURNED, tie_word_embeddings=True
        ),
        "no attention biases, odd widths": base(
            attention_bias=False, hidden_act="gelu_new", intermediate_size=37
        )
        | {"hidden_size": 30, "num_attention_heads": 3},
    },
    "llama": {
        "grouped heads": base(num_key_value_heads=2),
        "Llama 3's scaling, tied, one key head": base(
            num_key_value_heads=1, rope_parameters=LLAMA3, tie_word_embeddings=True
        ),
        "biases, heads of 10, linear scaling": base(
            attention_bias=True, mlp_bias=True, head_dim=10, rope_parameters=LINEAR
        )
        | {"intermediate_size": 33},
    },
    "mistral": {
        "no window": base(num_key_value_heads=2, sliding_window=None),
        "window of 5": base(num_key_value_heads=2, sliding_window=5),
        "window of 3, heads of 14, tied": base(
            sliding_window=3, head_dim=14, tie_word_embeddings=True
        ),
    },
    "qwen2": {
        "grouped heads": base(num_key_value_heads=2),
        "tied, odd widths": base(tie_word_embeddings=True, intermediate_size=31),
        "window of 4 from the second layer": base(
            use_sliding_window=True, sliding_window=4, max_window_layers=1, num_key_value_heads=1
        ),
    },
    "qwen3": {
        "heads of 10": base(head_dim=10, num_key_value_heads=2),
        "tied, biases": base(head_dim=6, tie_word_embeddings=True, attention_bias=True),
        "window of 4 in the first layer": base(
            head_dim=8, use_sliding_window=True, sliding_window=4, layer_types=FIRST_WINDOWED
        ),
    },
    "gemma2": {
        "window of 4": base(head_dim=8, sliding_window=4, num_key_value_heads=2),
        "tight caps, untied": base(
            attn_logit_softcapping=1.5, final_logit_softcapping=2.0, tie_word_embeddings=False
        )
        | {"head_dim": 6, "query_pre_attn_scalar": 20},
        "no caps, biases": base(
            attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True
        )
        | {"head_dim": 10, "sliding_window": 3},
    },
    "gemma3_text": {
        "five windowed layers of six": base(
            head_dim=8, num_hidden_layers=6, sliding_window=4, num_key_value_heads=2
        ),
        "linear scaling of the full layers": base(
            head_dim=6, sliding_window=3, layer_types=FIRST_WINDOWED, rope_parameters=BY_LAYER
        ),
        "capped logits, untied, one key head": base(
            head_dim=10, num_key_value_heads=1, final_logit_softcapping=2.0
        )
        | {"tie_word_embeddings": False},
    },
}

BERT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 61}
BERT |= {"num_attention_heads": 4, "max_position_embeddings": 26, "initializer_range": 0.3}
ODD = {"hidden_size": 21, "num_attention_heads": 3, "intermediate_size": 37, "vocab_size": 59}
DISTILBERT = {"dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, "vocab_size": 61}
DISTILBERT |= {"max_position_embeddings": 22, "initializer_range": 0.3}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
DEBERTA_V3 = BERT | RELATIVE | {"norm_rel_ebd": "layer_norm", "share_att_key": True}
DEBERTA_V3 |= {"pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0}
DEBERTA_V3 |= {"max_relative_positions": -1, "layer_norm_eps": 1e-7, "pooler_dropout": 0}
DEBERTA_V3 |= {"pooler_hidden_act": "gelu", "pooler_hidden_size": 24}

# The same of text classifiers; without a number of labels there are two.
bert, relative = functools.partial(dict, BERT), functools.partial(dict, BERT | RELATIVE)
odd = functools.partial(dict, BERT | ODD)
ENCODERS = {
    "distilbert": {
        "two labels": DISTILBERT,
        "odd widths, ReLU, three labels": DISTILBERT
        | {"dim": 21, "n_heads": 3, "hidden_dim": 37, "activation": "relu", "num_labels": 3},
        "sinusoids, one layer, one label": DISTILBERT
        | {"sinusoidal_pos_embds": True, "n_layers": 1, "num_labels": 1},
    },
    "bert": {
        "two labels": BERT,
        "odd widths, one token type, three labels": odd(
            type_vocab_size=1, hidden_act="gelu_new", num_labels=3
        ),
        "one head, SiLU, three layers, one label": bert(
            num_attention_heads=1, num_hidden_layers=3, hidden_act="silu", num_labels=1
        )
        | {"layer_norm_eps": 1e-5},
    },
    "roberta": {
        "two labels": bert(type_vocab_size=1, layer_norm_eps=1e-5),
        "padding is token 3, odd widths, three labels": odd(pad_token_id=3, num_labels=3),
        "padding is token 0, ReLU, one label": bert(
            pad_token_id=0, hidden_act="relu", num_labels=1
        ),
    },
    "deberta-v2": {
        "as v3: 8 buckets, shared projections, normed offsets": DEBERTA_V3,
        "as v3: 12 buckets, odd widths, three labels": DEBERTA_V3
        | ODD
        | {"position_buckets": 12, "pooler_hidden_size": 21, "num_labels": 3},
        "own projections, offsets up to 6, two token types": relative(
            position_buckets=-1, max_relative_positions=6, type_vocab_size=2
        ),
        "c2p alone, tanh pooler, one label": relative(
            pos_att_type=["c2p"], pooler_hidden_act="tanh", num_labels=1
        ),
        "p2c alone, shared projections, 5 buckets": relative(
            pos_att_type=["p2c"], position_buckets=5, share_att_key=True
        )
        | {"max_relative_positions": 12},
        "offsets that no score reads": relative(pos_att_type=None),
        "no offsets": BERT,
    },
}


def random_model(model_type: str, settings: dict, *, seed: int, head: bool = False):
    """transformers' model of these settings, every parameter moved away from its first value."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **settings)
    if head:
        auto = transformers.AutoModelForSequenceClassification
    else:
        auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def torch_logits(model, tokens, mask=None) -> np.ndarray:
    """Logits of a torch model for tokens, some of which a mask may leave out."""
    import torch

    mask = None if mask is None else torch.tensor(np.asarray(mask, np.int64))
    with torch.no_grad():
        output = model.eval()(torch.tensor(np.asarray(tokens, np.int64)), attention_mask=mask)
    return output.logits.numpy()


@functools.partial(jax.jit, static_argnums=0)
def decode_all(config, params, tokens_bp, lengths_b, responses_bng):
    """Logits [B, N, 1 + G, V] behind the prompt and behind each token of a given response."""
    rows, new = responses_bng.shape[1:]
    last, cache = decoder.prefill(config, params, tokens_bp, lengths_b, num_samples=rows)
    cache = decoder.grow(cache, new)

    def feed(cache, slot):
        state, cache = decoder.decode(config, params, cache, responses_bng[:, :, slot], slot)
        return cache, state

    _, states = jax.lax.scan(feed, cache, jnp.arange(new))
    first = jnp.broadcast_to(last[None, :, None], (1, *states.shape[1:]))
    return decoder.logits(config, params, jnp.moveaxis(jnp.concatenate([first, states]), 0, 2))


def joined(prompts, lengths, responses) -> np.ndarray:
    """Each response [B, N, G] right behind its prompt [B, P]: tokens [B * N, P + G]."""
    rows, new = responses.shape[1:]
    whole = np.zeros((len(prompts), rows, prompts.shape[1] + new), np.int32)
    for prompt, length in enumerate(lengths):
        whole[prompt, :, :length] = prompts[prompt, :length]
        whole[prompt, :, length : length + new] = responses[prompt]
    return whole.reshape(-1, whole.shape[2])


def random_params(config: model_folder.Config) -> dict:
    """Parameters without a compilation; none is 0 or 1, so that none can be dropped unseen."""
    shapes = jax.eval_shape(lambda: classifier.init(config, jax.random.key(0)))
    rng = np.random.default_rng(5)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32(
            0.2 * rng.normal(size=leaf.shape) + ("scale" in jax.tree_util.keystr(path))
        ),
        shapes,
    )


class Network(NamedTuple):
    """A network of random parameters, and the config.json that describes it."""

    settings: dict
    config: model_folder.Config
    params: dict

    def save(self, folder, **options) -> None:
        """Write it as a Hugging Face folder."""
        options = {"settings": self.settings} | options
        model_folder.save(folder, self.config, self.params, **options)


def network(model_type: str, settings: dict, *, labels: tuple[str, ...] = ()) -> Network:
    """Random parameters of the right shapes, without a compilation."""
    settings = {"model_type": model_type} | settings
    config = model_folder.config_of(settings, labels=labels, source="tests")
    return Network(settings, config, random_params(config))
