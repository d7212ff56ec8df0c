"""Groups of components: the same shapes, cut at the same place along the leading axis."""

import jax
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.grouping import groups

LAYERS, WIDTH, HEADS = 3, 4, 2


def block(path, layer, head):
    return slt.Block(path, (LAYERS, WIDTH, HEADS), (1, WIDTH, 1), (layer, 0, head))


def head(layer, number):
    return slt.Restriction([block("q", layer, number), block("o", layer, number)])


def whole_layer(layer):
    return slt.Restriction(
        slt.Block(path, (LAYERS, WIDTH, HEADS), (1, WIDTH, HEADS), (layer, 0, 0)) for path in "qo"
    )


def test_heads_are_grouped_by_layer_whatever_the_order():
    names = [(layer, number) for number in range(HEADS) for layer in range(LAYERS)]
    found = groups({f"l{layer}h{number}": head(layer, number) for layer, number in names})
    assert [list(group) for group in found] == [
        [f"l{layer}h{number}" for number in range(HEADS)] for layer in range(LAYERS)
    ]


def test_every_component_is_in_one_group_and_is_the_one_given():
    components = {f"l{layer}": whole_layer(layer) for layer in range(LAYERS)}
    components |= {f"l{layer}h0": head(layer, 0) for layer in range(LAYERS)}
    found = groups(components)
    assert {name: part for group in found for name, part in group.items()} == components
    assert len(found) == 2 * LAYERS, "layers and heads have different shapes"


def test_all_blocks_count_not_the_first_alone():
    crossing = slt.Restriction([block("q", 0, 0), block("o", 1, 0)])
    assert len(groups({"one layer": head(0, 0), "two layers": crossing})) == 2


def test_whole_leaves_of_equal_shape_are_one_group_only_if_their_paths_agree():
    leaves = {path: slt.Restriction([slt.Block(path, (2, 2))]) for path in ("a", "b")}
    assert [list(group) for group in groups(leaves)] == [["a"], ["b"]]


@pytest.mark.parametrize("number", range(HEADS))
def test_an_offset_on_the_device_counts_as_the_same_offset(number):
    moved = slt.Restriction(
        slt.Block(b.path, b.view, b.size, jax.device_put(np.asarray(b.start)))
        for b in head(1, number).blocks
    )
    assert len(groups({"host": head(1, number), "device": moved})) == 1


def test_leaves_without_axes_have_no_place_to_be_cut_at():
    scale = slt.Restriction([slt.Block("scale", ())])
    assert groups({"scale": scale}) == [{"scale": scale}]


def test_nothing_gives_no_groups():
    assert groups({}) == []
