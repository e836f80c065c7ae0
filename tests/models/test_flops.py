"""FLOPs by arithmetic: those of the products that JAX makes, and nearly those that XLA counts."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.extend import core

from tests import families
from vbon_jax.models import classifier, decoder, flops, log_probs, lora
from vbon_jax.types import Sequences

ROWS, WIDTH, NEW = 3, 12, 7
FAMILIES = families.DECODERS | families.ENCODERS
CASES = [(name, shape) for name, shapes in FAMILIES.items() for shape in shapes]
WIDE = decoder.DecoderConfig(
    vocab_size=512, width=128, num_layers=2, num_heads=4, mlp_width=512, max_positions=32
)


def network(name: str, shape: str):
    settings = FAMILIES[name][shape]
    count = settings.get("num_labels", 2) if name in families.ENCODERS else 0
    made = families.network(name, settings, labels=tuple(f"L{label}" for label in range(count)))
    return made.config, made.params


def products(jaxpr, times: int = 1) -> float:
    """FLOPs of the matrix products of a traced function, a loop's body as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += times * 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(inner)
        again = times * equation.params.get("length", 1)
        for inside in jax.tree.leaves(list(equation.params.values())):
            if isinstance(inside, core.ClosedJaxpr | core.Jaxpr):
                total += products(getattr(inside, "jaxpr", inside), again)
    return total


def flat(params) -> dict:
    return traverse_util.flatten_dict(params, sep="/")


def loss_of(config, trained: set[str]):
    """The sum of what a network gives, as a function of its parameters and tokens [S, T]."""

    def loss(params, tokens):
        kept = {
            name: leaf if name in trained else jax.lax.stop_gradient(leaf)
            for name, leaf in flat(params).items()
        }
        params = traverse_util.unflatten_dict(kept, sep="/")
        lengths = jnp.full(len(tokens), tokens.shape[1], jnp.int32)
        if config.num_labels:
            return classifier.classify(config, params, tokens, lengths).sum()
        rows, options = Sequences(tokens, lengths - NEW, lengths), {"temperature": 1.0}
        return log_probs.response_log_probs(config, params, rows, new_tokens=NEW, **options)[
            0
        ].sum()

    return loss


def counted(config, params, pattern: str = ".*", rows=(ROWS, WIDTH)) -> tuple:
    """Our FLOPs, and a gradient of which others can be counted with its arguments."""
    names = {name for name in flat(params) if re.fullmatch(pattern, name)}
    shapes = {name: np.shape(leaf) for name, leaf in flat(params).items()}
    ours = flops.update(config, shapes, names, flops.Rows(*rows, NEW))
    return ours, jax.grad(loss_of(config, names)), jax.ShapeDtypeStruct(rows, jnp.int32)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_network_is_counted_to_the_last_product(name, shape):
    config, params = network(name, shape)
    ours, gradient, tokens = counted(config, params)
    assert ours == products(jax.make_jaxpr(gradient)(params, tokens).jaxpr)


@pytest.mark.parametrize(
    "pattern", ["layer_1/.*", "norm_f/.*|head/.*", "layer_0/attention/.*", ".*mlp.*", "tokens/.*"]
)
def test_what_is_not_trained_has_no_gradient(pattern):
    for name, shape in (("llama", "grouped heads"), ("gpt2", "tied")):
        config, params = network(name, shape)
        ours, gradient, tokens = counted(config, params, pattern)
        assert ours == products(jax.make_jaxpr(gradient)(params, tokens).jaxpr)


def test_adapters_and_heads_of_decoders():
    config, params = network("llama", "grouped heads")
    adapted = lora.add(config, params, decoder.Lora(".*", 2, 4.0), jax.random.key(0))
    headed = decoder.with_score(config, params, ("no", "yes"), jax.random.key(0))
    for (model, parameters), pattern in ((adapted, ".*lora.*"), (headed, ".*")):
        ours, gradient, tokens = counted(model, parameters, pattern)
        assert ours == products(jax.make_jaxpr(gradient)(parameters, tokens).jaxpr)


def test_the_vocabulary_in_parts_counts_once(monkeypatch):
    """What is made again to save memory is no other budget; tracing alone shows that it is made."""
    config, params = network("llama", "grouped heads")
    monkeypatch.setattr(log_probs, "LOGIT_BYTES", 4 * 4 * config.vocab_size)
    ours, gradient, tokens = counted(config, params, rows=(4, WIDTH))
    assert ours == counted(config, params)[0] * 4 / ROWS
    assert products(jax.make_jaxpr(gradient)(params, tokens).jaxpr) > ours


@pytest.mark.slow
def test_xla_counts_the_same_but_for_what_is_no_product():
    """Of 128 channels, XLA adds norms, softmax and activations: some per cent, and never less."""
    params = families.random_params(WIDE)
    ours, gradient, tokens = counted(WIDE, params, rows=(8, 32))
    theirs = jax.jit(gradient).lower(params, tokens).compile().cost_analysis()["flops"]
    assert 1.0 <= theirs / ours < 1.1
