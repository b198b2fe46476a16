"""Which layers a scheme covers, and what comes of a request beside a stored scheme."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from parhelion.errors import ConfigError
from parhelion.quantization import (
    FP8_BLOCK,
    FP8_PER_TOKEN,
    INT8_PER_TOKEN,
    UNQUANTIZED,
    QuantScheme,
    choose_scheme,
)

DOWN = "model.layers.3.mlp.down_proj"


def ignoring(*entries: str) -> QuantScheme:
    return replace(FP8_PER_TOKEN, ignored=entries)


@pytest.mark.parametrize(
    ("entry", "covered"),
    [
        (DOWN, False),
        ("down_proj", False),
        ("mlp.down_proj", False),
        ("re:.*down_proj", False),
        (r"re:model\.layers\.[0-3]\.", False),
        ("model.layers.3.mlp", True),
        ("own_proj", True),
        ("model.layers.4.mlp.down_proj", True),
        ("re:down_proj", True),
        (r"re:.*layers\.4\.", True),
        ("lm_head", True),
    ],
)
def test_ignored_entries_are_names_endings_or_patterns(entry: str, covered: bool):
    assert ignoring(entry).applies_to(DOWN) is covered


@pytest.mark.parametrize("scheme", [FP8_PER_TOKEN, FP8_BLOCK, INT8_PER_TOKEN])
def test_lm_head_and_embeddings_stay_as_they_are(scheme: QuantScheme):
    assert scheme.applies_to(DOWN)
    assert not scheme.applies_to("lm_head")
    assert not replace(scheme, ignored=()).applies_to("model.embed_tokens")
    assert not UNQUANTIZED.applies_to(DOWN)


def test_a_request_quantizes_plain_weights_while_loading():
    assert choose_scheme(None, None) == UNQUANTIZED
    fp8, int8 = choose_scheme(None, "fp8"), choose_scheme(UNQUANTIZED, "int8")
    assert (fp8.source, fp8.weight_dtype, fp8.activation) == ("load", torch.float8_e4m3fn, "fp8_per_token")
    assert (int8.source, int8.weight_dtype, int8.activation) == ("load", torch.int8, "int8_per_token")
    assert not fp8.applies_to("lm_head")


@pytest.mark.parametrize("stored", [FP8_PER_TOKEN, FP8_BLOCK])
def test_a_stored_scheme_is_kept_and_no_other_is_made_of_it(stored: QuantScheme):
    assert choose_scheme(stored, None) == stored
    assert choose_scheme(stored, "fp8") == stored
    with pytest.raises(ConfigError, match=rf"quantization is int8, but .* already quantized \({stored.name}\)"):
        choose_scheme(stored, "int8")
