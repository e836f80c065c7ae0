"""Where parameters and rows lie: a row for every network's parameters, rows over all devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from tests import families
from tests.models.test_flops import CASES, flat, network
from vbon_jax.models import decoder, log_probs, lora, sharding
from vbon_jax.types import InputError, Sequences


def described(data: int, fsdp: int) -> AbstractMesh:
    """A mesh of devices that do not exist, to trace programs for."""
    return AbstractMesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_no_large_parameter_is_on_every_device(name, shape):
    config, params = network(name, shape)
    networks = [(config, params)]
    if name in families.DECODERS:
        networks.append(lora.add(config, params, decoder.Lora(".*", 2, 4.0), jax.random.key(0)))
        networks.append(decoder.with_score(config, params, ("no", "yes"), jax.random.key(0)))
    for model, parameters in networks:
        specs = flat(sharding.shardings({"decoder": parameters}, described(1, 1)))
        sizes = {name: np.size(leaf) for name, leaf in flat({"decoder": parameters}).items()}
        whole = {name for name in sizes if "fsdp" not in specs[name].spec}
        assert max(sizes[name] for name in whole) < model.width**2
        assert sum(sizes[name] for name in whole) < 0.25 * sum(sizes.values())


def test_a_parameter_without_a_row_is_an_error():
    params = {"decoder": {"layer_0": {"router": {"kernel": np.zeros((8, 4), np.float32)}}}}
    with pytest.raises(KeyError, match="no row for the parameter decoder/layer_0/router/kernel"):
        sharding.shardings(params, described(1, 8))


def test_a_mesh_may_leave_devices_out(monkeypatch):
    monkeypatch.setattr(jax, "make_mesh", lambda shape, names, **rest: (shape, rest["devices"]))
    assert sharding.make_mesh(data=2, fsdp=1, devices=list("abc")) == ((2, 1), ["a", "b"])
    assert sharding.make_mesh(data=-1, fsdp=2, devices=list("abc")) == ((1, 2), ["a", "b"])
    for data, fsdp in ((4, 1), (-1, 4), (2, 2)):
        with pytest.raises(InputError, match=r"on 3 devices; give mesh\.data=-1 and a mesh\.fsdp"):
            sharding.make_mesh(data=data, fsdp=fsdp, devices=list("abc"))


@pytest.mark.parametrize(("devices", "rows", "steps"), [(1, 16, 8), (8, 16, 1), (3, 16, 4)])
def test_logits_are_made_for_as_many_positions_as_one_device_has_room_for(
    monkeypatch, devices, rows, steps
):
    """Room for 16 rows of one position: 8 parts on one device, one on 8, 4 where each has 6."""
    config, params = network("llama", "grouped heads")
    monkeypatch.setattr(log_probs, "LOGIT_BYTES", 4 * 16 * config.vocab_size)
    where = NamedSharding(described(devices, 1), PartitionSpec())

    def on_mesh(leaf):
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=where)

    numbers = np.full(rows, 10, np.int32)
    sequences = Sequences(np.ones((rows, 10), np.int32), numbers - 8, numbers)
    traced = jax.make_jaxpr(
        lambda params: log_probs.token_log_probs(
            config,
            params,
            log_probs.response_hidden(config, params, sequences, new_tokens=8),
            sequences.tokens_st[:, 2:],
        )
    )(jax.tree.map(on_mesh, params))
    loops = [int(e.params["length"]) for e in traced.jaxpr.eqns if e.primitive.name == "scan"]
    assert loops == ([steps] if steps > 1 else [])
    assert ("sharding_constraint" in str(traced)) == (devices > 1)


def test_rows_are_rounded_up_to_the_devices_of_the_parameters():
    assert sharding.rounded_up(5, {"a": np.zeros(3)}) == 5
    mesh = types.SimpleNamespace(size=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "mesh_of", lambda params: mesh)
        assert [sharding.rounded_up(count, None) for count in (1, 3, 4)] == [3, 3, 6]
    assert sharding.rows_a_device(jnp.ones((4, 2))) == 4
