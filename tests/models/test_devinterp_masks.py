"""Components select what devinterp 2.0.1 selects, its defects apart, which are repeated here."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import slt_jax as slt
from slt_jax.models.hf import from_hf
from slt_jax.models.safetensors_reader import open_folder
from slt_jax.models.safetensors_writer import Pending, write_file
from tests.models.layouts import digest, number_weights, selected

FIXTURES = Path(__file__).parent / "fixtures"
MASKS = json.loads((FIXTURES / "devinterp_masks.json").read_text(encoding="utf-8"))
CONFIGS = {
    name: json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
    for name in MASKS
}


def has_short_keys(config):
    """Whether heads are grouped and their width is not d / heads."""
    heads = config.get("num_attention_heads")
    is_grouped = config.get("num_key_value_heads", heads) != heads
    return is_grouped and (config.get("head_dim") or 0) not in (0, config["hidden_size"] // heads)


def has_forgotten_biases(config):
    """Whether the model has biases that its family does not have by default."""
    is_optional = config["model_type"] in (
        "gemma",
        "gemma2",
        "gemma3_text",
        "llama",
        "olmo",
        "qwen3",
    )
    return is_optional and bool(config.get("attention_bias") or config.get("mlp_bias"))


SHORT_KEYS = {name for name, config in CONFIGS.items() if has_short_keys(config)}
FORGOTTEN_BIASES = {name for name, config in CONFIGS.items() if has_forgotten_biases(config)}


@pytest.fixture(params=sorted(MASKS))
def numbered(request, tmp_path):
    """A checkpoint with the number of every weight in its place: name, model, numbers by path."""
    source = FIXTURES / request.param
    shapes = {name: tensor.shape for name, tensor in open_folder(source).items()}
    pending = {
        name: Pending(array.dtype, array.shape, lambda array=array: array)
        for name, array in number_weights(shapes).items()
    }
    write_file(tmp_path / "model.safetensors", pending)
    shutil.copy(source / "config.json", tmp_path)
    model = from_hf(tmp_path)
    return request.param, model, {path: np.asarray(leaf) for path, leaf in model.params.items()}


def test_components_are_the_masks_of_devinterp(numbered):
    name, model, params = numbered
    for pattern, expected in MASKS[name].items():
        if pattern == "unembed" and "unembed" not in params:
            # A tied model has no unembedding of its own: nothing there, an error here.
            assert expected[0] == 0
            with pytest.raises(ValueError, match="is tied"):
                model.components[pattern]
        elif pattern == "unembed" and name.startswith("gpt_neox"):
            # Looked for by a name that transformers 5 no longer uses.
            assert expected[0] == 0
            assert model.components[pattern].num_params == params["unembed"].size
        else:
            repeated = slt.Restriction(with_defects(name, model.components, pattern))
            assert digest(selected(params, repeated)) == expected, pattern


def with_defects(name, components, pattern):
    """The blocks of a component, less what devinterp leaves out of it."""
    for block in components[pattern].blocks:
        is_bias = re.fullmatch(r"(attn|mlp)\..*_b", block.path)
        is_by_prefix = re.fullmatch(r"full|l\d+", pattern)
        if is_bias and not is_by_prefix and name in FORGOTTEN_BIASES:
            continue
        head = re.fullmatch(r"l\d+h(\d+)", pattern)
        if head and name in SHORT_KEYS and block.path.startswith(("attn.k", "attn.v")):
            block = short_keys(block, components.layout, int(head[1]))
        yield block


def short_keys(block, layout, head):
    """The part of a key or value head that devinterp gives to one of the heads that share it."""
    share = layout.num_heads // layout.num_groups
    size, start = list(block.size), np.array(block.start)
    size[-1] //= share
    start[-1] = head % share * size[-1]
    return slt.Block(block.path, block.view, size, start)


def test_enough_models_are_compared_and_most_without_a_defect():
    assert len(MASKS) == 25
    assert len(MASKS.keys() - SHORT_KEYS - FORGOTTEN_BIASES) >= 10
    assert SHORT_KEYS
    assert FORGOTTEN_BIASES
