"""What a config asks of adapters: where its keys go together, and what is told where they do not."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from jaxmm.config.keys import KEYS
from jaxmm.errors import UserError
from jaxmm.hf.adapter_record import Begun
from jaxmm.models.adapters import AdapterSpec
from jaxmm.models.multimodal import abstract_params, model_maps
from jaxmm.models.routing import ExpertSpec
from jaxmm.models.tables import TABLES
from jaxmm.models.trainable import Trainable
from jaxmm.training.opening import frozen_line
from jaxmm.tuning import check_begun, make_adapter, make_frozen


def asked(**options: Any) -> dict[str, Any]:
    """The values of config.adapter."""
    group = {name.removeprefix("adapter."): key.default for name, key in KEYS.items() if name.startswith("adapter.")}
    return group | options


def test_maps_that_are_frozen_have_no_adapter_and_are_told(tiny):
    spec = make_adapter(asked(rank=2, targets="*.mlp.up,connector"), None, tiny.spec, ("vision", "*.lora.into"))
    model = dataclasses.replace(tiny.spec, adapter=spec)
    assert {one.path[0] for one in model_maps(model)} == {"connector", "decoder"}
    assert frozen_line(model) == "adapter.targets: maps that optimizer.freeze freezes have no adapter: 1 of vision"
    spec = make_adapter(asked(rank=2), None, tiny.spec, ("vision",))
    assert frozen_line(dataclasses.replace(tiny.spec, adapter=spec)) == ""


@pytest.mark.parametrize(("targets", "frozen", "named"), [
    ("decoder.blocks,vision.blocks", "vision", "vision.blocks"), ("decoder.embedding", "decoder", "decoder.embedding"),
    ("connector.up", "*.lora", "connector.up"),
])  # fmt: skip
def test_a_target_that_means_frozen_maps_alone_is_refused(targets, frozen, named, tiny):
    told = f"targets: '{named}' means nothing but what config.optimizer.freeze={frozen} freezes"
    with pytest.raises(UserError, match=re.escape(told)):
        make_adapter(asked(rank=2, targets=targets), None, tiny.spec, (frozen,))


@pytest.mark.parametrize(("key", "value"), [("kind", "dora"), ("dropout", 0.1)])
def test_experts_have_neither_dora_nor_dropout(key, value, tiny):
    model = dataclasses.replace(tiny.spec, decoder=dataclasses.replace(tiny.spec.decoder, experts=ExpertSpec(4, 2, 24)))
    with pytest.raises(UserError, match=f"adapter.{key}={value} is not of experts, and decoder.blocks.experts."):
        make_adapter(asked(rank=2, **{key: value}), None, model)
    assert make_adapter(asked(rank=2, targets="decoder.blocks.attention", **{key: value}), None, model)


@pytest.mark.parametrize(("base_dtype", "kernel"), [("bfloat16", "bfloat16"), ("int8", "int8"), ("nf4", "uint8")])
def test_experts_are_held_as_other_maps_are_and_their_routers_as_bfloat16(base_dtype, kernel, tiny):
    model = dataclasses.replace(tiny.spec, decoder=dataclasses.replace(tiny.spec.decoder, experts=ExpertSpec(4, 2, 24)))
    adapted = dataclasses.replace(model, adapter=make_adapter(asked(rank=2), None, model))
    frozen = make_frozen(base_dtype, adapted, Trainable(adapters=True))
    held = abstract_params(dataclasses.replace(adapted, frozen=frozen))["decoder"]["blocks"]["experts"]
    codes = held["gate"]["kernel"] if base_dtype == "bfloat16" else held["gate"]["kernel"]["codes"]
    assert (held["router"].dtype.name, codes.dtype.name) == ("bfloat16", kernel)
    assert held["gate"]["lora"]["into"].shape == (model.decoder.layers, 4, model.decoder.width, 2)


def test_the_projection_means_the_embedding_where_they_are_one_table(tiny):
    for is_tied, table in ((True, TABLES[0]), (False, TABLES[1])):
        decoder = dataclasses.replace(tiny.spec.decoder, tie_embeddings=is_tied)
        model = dataclasses.replace(tiny.spec, decoder=decoder)
        spec = make_adapter(asked(rank=2, targets="decoder.head"), None, model)
        assert [one.path for one in model_maps(dataclasses.replace(model, adapter=spec))] == [table]


@pytest.mark.parametrize(("options", "told"), [
    ({"rank": 8}, "config.adapter.rank is 8, but the adapters in theirs have 16, .* goes on with: set it to 16 or 0$"),
    ({"alpha": 4.0}, "config.adapter.alpha is 4.0, but .*: set it to 32 or 0$"),
    ({"kind": "dora"}, "config.adapter.kind is dora, but .* have lora, .*: set it to lora$"),
    ({"init": "pissa"}, "config.adapter.init=pissa is how adapters begin, .*: set it to ''$"),
    ({"targets": "connector"}, "config.adapter.targets: .* other than asked for: set it to decoder.blocks"),
])  # fmt: skip
def test_what_differs_from_adapters_that_have_begun_is_told_with_what_to_set(options, told, tiny):
    begun = Begun("theirs", AdapterSpec(("decoder.blocks",), 16, 32.0))
    with pytest.raises(UserError, match=told):
        check_begun(asked(**options), begun, None, tiny.spec)
    check_begun(asked(rank=16, alpha=32.0), begun, None, tiny.spec)


def test_adapters_that_have_begun_may_be_of_maps_that_are_frozen_now_or_were(tiny):
    both = asked(targets="*.mlp.up")
    for theirs, now in ((("vision",), ()), ((), ("vision",))):
        begun = Begun("theirs", AdapterSpec(("*.mlp.up",), 16, 32.0, frozen=theirs))
        check_begun(both, begun, None, tiny.spec, now)
