"""The families of encoders with a classifier: BERT, RoBERTa, DistilBERT, and DeBERTa v2 and v3."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vbon_jax.models import encoder, layers
from vbon_jax.models.disentangled import RelativePositions
from vbon_jax.models.encoder import EncoderConfig
from vbon_jax.models.huggingface.families import Family, Tensor, dense, heads, norm, refuse_unless
from vbon_jax.models.huggingface.safe_files import Fields
from vbon_jax.types import InputError

# ------------------------------------------------------------------------------------- DistilBERT


def _read_distilbert(fields: Fields) -> EncoderConfig:
    fields.refuse("pruned_heads", "pruning of heads")
    width = fields.size("dim", 768)
    # sinusoidal_pos_embds needs no reading: that table is saved among the weights like any other.
    return EncoderConfig(
        vocab_size=fields.size("vocab_size", 30522),
        width=width,
        num_layers=fields.size("n_layers", 6),
        num_heads=heads(fields, "n_heads", 12, width),
        mlp_width=fields.size("hidden_dim", 3072),
        max_positions=fields.size("max_position_embeddings", 512),
        activation=fields.choice("activation", tuple(layers.ACTIVATIONS), "gelu"),
        initializer_std=fields.positive("initializer_range", 0.02),
    )


def _write_distilbert(config: EncoderConfig) -> dict[str, Any]:
    refuse_unless(
        config,
        "DistilBERT",
        position_table=True,
        first_position=0,
        token_types=0,
        relative=None,
        norm_epsilon=1e-12,
        head_activation="relu",
    )
    return {
        "vocab_size": config.vocab_size,
        "dim": config.width,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "hidden_dim": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "sinusoidal_pos_embds": False,  # the table may have been trained
        "activation": config.activation,
        "initializer_range": config.initializer_std,
    }


def _distilbert_tensors(config: EncoderConfig) -> Iterator[Tensor]:
    """DistilBERT keeps dense layers as [outputs, inputs]."""
    embeddings = "distilbert.embeddings"
    yield Tensor(f"{embeddings}.word_embeddings.weight", ("tokens/embedding",))
    yield Tensor(f"{embeddings}.position_embeddings.weight", ("positions/embedding",))
    yield from norm(f"{embeddings}.LayerNorm", "norm_0")
    for index in range(config.num_layers):
        theirs, ours = f"distilbert.transformer.layer.{index}", f"layer_{index}"
        yield from dense(f"{theirs}.attention.q_lin", f"{ours}/attention/query")
        yield from dense(f"{theirs}.attention.k_lin", f"{ours}/attention/key")
        yield from dense(f"{theirs}.attention.v_lin", f"{ours}/attention/value")
        yield from dense(f"{theirs}.attention.out_lin", f"{ours}/attention/output")
        yield from norm(f"{theirs}.sa_layer_norm", f"{ours}/norm_1")
        yield from dense(f"{theirs}.ffn.lin1", f"{ours}/mlp/up")
        yield from dense(f"{theirs}.ffn.lin2", f"{ours}/mlp/down")
        yield from norm(f"{theirs}.output_layer_norm", f"{ours}/norm_2")
    yield from dense("pre_classifier", "pre_classifier")
    yield from dense("classifier", "classifier")


# ------------------------------------------------------------------- BERT and those that follow it

BERT = {"vocab_size": 30522, "hidden_size": 768, "num_layers": 12, "intermediate_size": 3072}
BERT |= {"layer_norm_eps": 1e-12}
ROBERTA = BERT | {"vocab_size": 50265}
DEBERTA = {"vocab_size": 128100, "hidden_size": 1536, "num_layers": 24, "intermediate_size": 6144}
DEBERTA |= {"layer_norm_eps": 1e-7}


def _read_common(fields: Fields, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What BERT and its followers name alike; `defaults` are transformers' own."""
    fields.refuse("pruned_heads", "pruning of heads")
    fields.refuse("is_decoder", "attention to earlier tokens alone")
    fields.refuse("add_cross_attention", "cross-attention")
    fields.choice("position_embedding_type", ("absolute",), "absolute")
    width = fields.size("hidden_size", defaults["hidden_size"])
    return {
        "vocab_size": fields.size("vocab_size", defaults["vocab_size"]),
        "width": width,
        "num_layers": fields.size("num_hidden_layers", defaults["num_layers"]),
        # All three have as many heads as layers where their folders do not say.
        "num_heads": heads(fields, "num_attention_heads", defaults["num_layers"], width),
        "mlp_width": fields.size("intermediate_size", defaults["intermediate_size"]),
        "activation": fields.choice("hidden_act", tuple(layers.ACTIVATIONS), "gelu"),
        "norm_epsilon": fields.positive("layer_norm_eps", defaults["layer_norm_eps"]),
        "initializer_std": fields.positive("initializer_range", 0.02),
    }


def _write_common(config: EncoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.first_position + config.max_positions,
        "type_vocab_size": config.token_types,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_epsilon,
        "initializer_range": config.initializer_std,
    }


def _read_bert(fields: Fields) -> EncoderConfig:
    return EncoderConfig(
        **_read_common(fields, BERT),
        max_positions=fields.size("max_position_embeddings", 512),
        token_types=fields.size("type_vocab_size", 2),
        head_activation="tanh",
    )


def _write_bert(config: EncoderConfig) -> dict[str, Any]:
    _refuse_unless_bert(config, "BERT")
    refuse_unless(config, "BERT", first_position=0)
    return _write_common(config)


def _refuse_unless_bert(config: EncoderConfig, family: str) -> None:
    refuse_unless(config, family, position_table=True, relative=None, head_activation="tanh")
    if not config.token_types:
        raise InputError(f"token_types = 0: {family} has one or more; train with them")


def _read_roberta(fields: Fields) -> EncoderConfig:
    padding = fields.settings.get("pad_token_id", 1)
    if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
        raise fields.error("pad_token_id", "give a token id; RoBERTa's positions begin behind it")
    rows = fields.size("max_position_embeddings", 512)
    if rows <= padding + 1:
        raise fields.error(
            "max_position_embeddings", f"give more than {padding + 1}, where positions begin"
        )
    return EncoderConfig(
        **_read_common(fields, ROBERTA),
        max_positions=rows - padding - 1,
        first_position=padding + 1,
        token_types=fields.size("type_vocab_size", 2),
        head_activation="tanh",
    )


def _write_roberta(config: EncoderConfig) -> dict[str, Any]:
    _refuse_unless_bert(config, "RoBERTa")
    if not config.first_position:
        raise InputError("first_position = 0: RoBERTa has 1 or more; train with that")
    return _write_common(config) | {"pad_token_id": config.first_position - 1}


def _bert_tensors(
    config: EncoderConfig, *, prefix: str, projection: str, head: tuple[str, str]
) -> Iterator[Tensor]:
    """BERT's names: `projection` is what stands behind query, key and value."""
    embeddings = f"{prefix}embeddings"
    yield Tensor(f"{embeddings}.word_embeddings.weight", ("tokens/embedding",))
    if config.position_table:
        yield Tensor(f"{embeddings}.position_embeddings.weight", ("positions/embedding",))
    if config.token_types:
        yield Tensor(f"{embeddings}.token_type_embeddings.weight", ("types/embedding",))
    yield from norm(f"{embeddings}.LayerNorm", "norm_0")
    for index in range(config.num_layers):
        theirs, ours = f"{prefix}encoder.layer.{index}", f"layer_{index}"
        for part in ("query", "key", "value"):
            name = f"{theirs}.attention.self.{part}{projection}"
            yield from dense(name, f"{ours}/attention/{part}")
        yield from dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        yield from norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/norm_1")
        yield from dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
        yield from dense(f"{theirs}.output.dense", f"{ours}/mlp/down")
        yield from norm(f"{theirs}.output.LayerNorm", f"{ours}/norm_2")
    for theirs, ours in zip(head, ("pre_classifier", "classifier"), strict=True):
        yield from dense(theirs, ours)


# ---------------------------------------------------------------------------------------- DeBERTa

TERMS = ("c2p", "p2c")


def _same(fields: Fields, name: str, value: int, what: str) -> None:
    """InputError where a field that may be absent says another size than the one we have."""
    if fields.size(name, value) != value:
        raise fields.error(name, f"only {what} {value} is supported; use a model with it")


def _read_deberta(fields: Fields) -> EncoderConfig:
    common = _read_common(fields, DEBERTA)
    width = common["width"]
    fields.refuse("conv_kernel_size", "a convolution")
    for name in ("embedding_size", "pooler_hidden_size"):
        _same(fields, name, width, "the width")
    _same(fields, "attention_head_size", width // common["num_heads"], "the width over the heads")
    types = fields.settings.get("type_vocab_size", 0)
    if not isinstance(types, int) or isinstance(types, bool) or types < 0:
        raise fields.error("type_vocab_size", "give a whole number from 0")
    positions = fields.size("max_position_embeddings", 512)
    return EncoderConfig(
        **common,
        max_positions=positions,
        position_table=fields.flag("position_biased_input", True),
        token_types=types,
        relative=_read_relative(fields, positions),
        head_activation=fields.choice("pooler_hidden_act", tuple(layers.ACTIVATIONS), "gelu"),
    )


def _read_relative(fields: Fields, positions: int) -> RelativePositions | None:
    terms = fields.settings.get("pos_att_type") or []
    if isinstance(terms, str):
        terms = [term.strip() for term in terms.lower().split("|")]
    if not isinstance(terms, list) or any(term not in TERMS for term in terms):
        raise fields.error("pos_att_type", f"give some of {' and '.join(TERMS)}, or none")
    normed = fields.choice("norm_rel_ebd", ("none", "layer_norm"), "none") == "layer_norm"
    if not fields.flag("relative_attention", False):
        for name, given in (("pos_att_type", terms), ("norm_rel_ebd", normed)):
            if given:
                raise fields.error(name, "has no meaning where relative_attention is not true")
        return None
    reach = _or_none(fields, "max_relative_positions") or positions
    buckets = _or_none(fields, "position_buckets")
    middle = buckets // 2
    # Farther ones than `middle` are told by log(offset / middle) / log((reach - 1) / middle).
    if buckets == 1 or (buckets and reach <= middle + 1 < positions):
        raise fields.error(
            "position_buckets", f"give -1 or from 2 to {max(2, 2 * reach - 3)} for {reach} offsets"
        )
    return RelativePositions(
        reach=reach,
        buckets=buckets,
        content_to_position="c2p" in terms,
        position_to_content="p2c" in terms,
        shared=fields.flag("share_att_key", False),
        normed=normed,
    )


def _or_none(fields: Fields, name: str) -> int:
    """A number that is absent where it is not above 0: then 0."""
    value = fields.settings.get(name, -1)
    if not isinstance(value, int) or isinstance(value, bool):
        raise fields.error(name, "give a whole number; -1 means none")
    return max(value, 0)


def _write_deberta(config: EncoderConfig) -> dict[str, Any]:
    refuse_unless(config, "DeBERTa", first_position=0)
    fields = _write_common(config) | {
        "position_biased_input": config.position_table,
        "relative_attention": config.relative is not None,
        "pos_att_type": [],
        "norm_rel_ebd": "none",
        "pooler_hidden_act": config.head_activation,
        "pooler_hidden_size": config.width,
    }
    relative = config.relative
    if relative is None:
        return fields
    asked = zip(TERMS, (relative.content_to_position, relative.position_to_content), strict=True)
    return fields | {
        "pos_att_type": [term for term, given in asked if given],
        "norm_rel_ebd": "layer_norm" if relative.normed else "none",
        "share_att_key": relative.shared,
        "max_relative_positions": relative.reach,
        "position_buckets": relative.buckets or -1,
    }


def _deberta_tensors(config: EncoderConfig) -> Iterator[Tensor]:
    """BERT's names, with a table of relative positions and maybe projections of its own."""
    yield from _bert_tensors(
        config, prefix="deberta.", projection="_proj", head=("pooler.dense", "classifier")
    )
    relative, table = config.relative, "deberta.encoder.rel_embeddings.weight"
    if relative is None:
        return
    yield Tensor(table, ("relative/positions/embedding",))
    if relative.normed:
        yield from norm("deberta.encoder.LayerNorm", "relative/norm")
    for index in range(0 if relative.shared else config.num_layers):
        theirs = f"deberta.encoder.layer.{index}.attention.self"
        ours = f"layer_{index}/attention/positions"
        if relative.content_to_position:
            yield from dense(f"{theirs}.pos_key_proj", f"{ours}/key")
        if relative.position_to_content:
            yield from dense(f"{theirs}.pos_query_proj", f"{ours}/query")


def _family(
    architecture: str, prefix: str, ignored: str, read: Callable, write: Callable, tensors: Callable
) -> Family:
    """An encoder's family; `ignored` is what its folders may hold that no classifier reads."""
    return Family(
        config_class=EncoderConfig,
        architectures={"classifier": (f"{architecture}ForSequenceClassification",)},
        prefix=prefix,
        ignored=re.compile(rf"embeddings\.(position|token_type)_ids{ignored}"),
        read_config=read,
        write_config=write,
        tensors=tensors,
        init=encoder.init,
    )


FAMILIES: dict[str, Family] = {
    "distilbert": _family(
        "DistilBert", "distilbert.", "", _read_distilbert, _write_distilbert, _distilbert_tensors
    ),
    "bert": _family(
        "Bert",
        "bert.",
        "",
        _read_bert,
        _write_bert,
        lambda config: _bert_tensors(
            config, prefix="bert.", projection="", head=("bert.pooler.dense", "classifier")
        ),
    ),
    "roberta": _family(
        "Roberta",
        "roberta.",
        r"|pooler\.dense\.(weight|bias)",  # of the language model; the classifier has its own
        _read_roberta,
        _write_roberta,
        lambda config: _bert_tensors(
            config,
            prefix="roberta.",
            projection="",
            head=("classifier.dense", "classifier.out_proj"),
        ),
    ),
    "deberta-v2": _family(
        "DebertaV2",
        "deberta.",
        # Of the language model: its heads, and positions that only they read.
        r"|embeddings\.position_embeddings\.weight|(lm|mask)_predictions\..+",
        _read_deberta,
        _write_deberta,
        _deberta_tensors,
    ),
}
