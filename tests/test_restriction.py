"""The laws of blocks and restrictions, on views, cuts and dtypes of many kinds."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from tests.helpers import DATA, PARAMS, POSTERIOR, head, same_bits

WEIGHTS = jax.tree.map(jnp.asarray, PARAMS)
NUM_RANDOM_BLOCKS = 24


def random_block(seed):
    """A random rectangle of a random view of 24, 36 or 60 weights."""
    generator = np.random.default_rng(seed)
    count = int(generator.choice([24, 36, 60]))
    view, rest = [], count
    while rest > 1 and len(view) < 3:
        divisors = [d for d in range(1, rest + 1) if rest % d == 0]
        view.append(int(generator.choice(divisors)))
        rest //= view[-1]
    view.append(rest)
    size = [int(generator.integers(1, extent + 1)) for extent in view]
    start = [
        int(generator.integers(0, extent - own + 1)) for extent, own in zip(view, size, strict=True)
    ]
    return slt.Block("w", view, size, start)


def selected(block):
    """The block as a mask over the flat leaf, by NumPy indexing."""
    mask = np.zeros(math.prod(block.view), bool)
    cut = tuple(
        slice(start, start + size)
        for start, size in zip(np.asarray(block.start), block.size, strict=True)
    )
    mask.reshape(block.view)[cut] = True
    return mask


def leaf_for(block, dtype=np.float32):
    """Random weights with negative zeros and, outside the block, NaNs of a payload of their own."""
    values = np.random.default_rng(7).normal(size=math.prod(block.view)).astype(np.float32)
    values[::5] = -0.0
    if dtype == np.float32:
        outside = np.flatnonzero(~selected(block))[::3]
        values[outside] = np.uint32(0x7FC12345).view(np.float32)
    return jnp.asarray(values.astype(dtype))


def full(size, value):
    return jnp.asarray(np.full(size, value, np.float32))


@pytest.mark.parametrize("seed", range(NUM_RANDOM_BLOCKS))
def test_read_after_insert_adds_the_displacement_in_float32(seed):
    block = random_block(seed)
    restriction, params = slt.Restriction([block]), {"w": leaf_for(block)}
    inside, before = selected(block), np.asarray(params["w"])
    shift = np.random.default_rng(8).normal(size=block.size).astype(np.float32)
    moved = restriction.insert(params, (jnp.asarray(shift),))
    after, (read,) = np.asarray(moved["w"]), restriction.read(moved)
    assert same_bits(restriction.read(params)[0], before[inside].reshape(block.size))
    assert same_bits(read, before[inside].reshape(block.size) + shift)
    assert same_bits(after[~inside], before[~inside])


@pytest.mark.parametrize("seed", range(0, NUM_RANDOM_BLOCKS, 4))
def test_inserting_zero_changes_no_weight(seed):
    block = random_block(seed)
    restriction, params = slt.Restriction([block]), {"w": leaf_for(block)}
    inside, before = selected(block), np.asarray(params["w"])
    after = np.asarray(restriction.insert(params, restriction.zeros())["w"])
    # Inside, −0 + 0 is +0: equal, with another sign bit.
    assert np.array_equal(after[inside], before[inside])
    assert same_bits(after[~inside], before[~inside])


@pytest.mark.parametrize("seed", range(0, NUM_RANDOM_BLOCKS, 4))
def test_bfloat16_leaves_come_back_as_float32_and_lose_nothing(seed):
    block = random_block(seed)
    restriction, params = slt.Restriction([block]), {"w": leaf_for(block, jnp.bfloat16)}
    inside, wide = selected(block), np.asarray(params["w"]).astype(np.float32)
    after = np.asarray(restriction.insert(params, (full(block.size, 1e-6),))["w"])
    assert same_bits(after[inside], wide[inside] + np.float32(1e-6))
    assert same_bits(after[~inside], wide[~inside])


def test_untouched_leaves_are_passed_through_as_they_are():
    params = {"a": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.arange(3.0)}
    restriction = slt.Restriction.from_paths(params, ["b"])
    assert restriction.insert(params, restriction.zeros())["a"] is params["a"]


@pytest.mark.parametrize("shape", [(), (1,), (2, 1, 3)])
def test_whole_leaves_of_any_rank(shape):
    params = {"w": full(shape, 2.0)}
    restriction = slt.Restriction.full(params)
    moved = restriction.insert(params, (full(shape, 0.5),))
    assert moved["w"].shape == shape
    assert np.all(moved["w"] == 2.5)


@pytest.mark.parametrize("number", [0, 1])
def test_head_of_a_fused_leaf(number):
    restriction = head(number)
    moved = restriction.insert(WEIGHTS, (full((3, 3, 1, 2), 1.0),))
    changed = np.asarray(moved["attention"]) != PARAMS["attention"]
    expected = np.zeros((3, 3, 2, 2), bool)
    expected[:, :, number] = True
    assert np.array_equal(changed.reshape(3, 3, 2, 2), expected)


def test_offsets_can_be_traced():
    def insert(start, value):
        return head(0).at((start,)).insert(WEIGHTS, (jnp.full((3, 3, 1, 2), value),))["attention"]

    moved = jax.jit(insert)(jnp.asarray([0, 0, 1, 0], jnp.int32), 0.25)
    expected = head(1).insert(WEIGHTS, (full((3, 3, 1, 2), 0.25),))["attention"]
    assert same_bits(moved, expected)


def test_an_offset_can_have_a_row_axis_while_the_others_have_none():
    block = slt.Block("attention", (3, 3, 2, 2), (3, 1, 1, 2), (0, 2, 0, 0))
    assert [offset is None for offset in block.offsets] == [True, False, False, True]
    seen = []

    def read(number):
        own = slt.Restriction([block]).at([(None, None, number, None)])
        seen.extend(own.blocks[0].offsets)
        return own.read(WEIGHTS)[0]

    found = jax.vmap(read)(np.arange(2, dtype=np.int32))
    rows = PARAMS["attention"].reshape(3, 3, 2, 2)[:, 2].transpose(1, 0, 2)
    assert same_bits(found, rows.reshape(2, 3, 1, 1, 2))
    assert seen[1] == 2, "a number, not an array of rows"
    assert isinstance(seen[2], jax.core.Tracer)


def test_several_blocks_of_one_leaf_move_independently():
    blocks = [*head(0).blocks, *head(1).blocks, slt.Block("output", (12,), (4,), (3,))]
    restriction = slt.Restriction(blocks)
    shifts = tuple(full(block.size, number + 1) for number, block in enumerate(blocks))
    moved = restriction.insert(WEIGHTS, shifts)
    assert restriction.labels == ("attention#0", "attention#1", "output")
    assert restriction.num_params == 18 + 18 + 4
    for value, shift, center in zip(
        restriction.read(moved), shifts, restriction.read(WEIGHTS), strict=True
    ):
        assert same_bits(value, center + shift)


def test_restricted_gradient_is_the_masked_full_gradient():
    batch = slt.Minibatch(DATA)

    def gradient(restriction):
        target = POSTERIOR.restrict(restriction)
        return jax.jit(jax.grad(target.gap))(restriction.zeros(), batch)

    whole = dict(zip(PARAMS, gradient(slt.Restriction.full(PARAMS)), strict=True))
    middle = slt.Restriction([slt.Block("attention", (3, 3, 4), (2, 2, 3), (1, 0, 1))])
    for restriction in (head(1), middle, slt.Restriction.from_paths(PARAMS, ["output"])):
        (restricted,) = gradient(restriction)
        block = restriction.blocks[0]
        expected = np.asarray(whole[block.path]).reshape(-1)[selected(block)]
        np.testing.assert_allclose(np.ravel(restricted), expected, rtol=1e-5, atol=1e-6)


def all_blocks(view):
    cuts = [
        [(start, size) for start in range(extent) for size in range(1, extent - start + 1)]
        for extent in view
    ]
    for cut in itertools.product(*cuts):
        yield slt.Block("w", view, [size for _, size in cut], [start for start, _ in cut])


def test_canonical_descriptions_are_equal_exactly_for_equal_selections():
    views = [
        (12,),
        (3, 4),
        (4, 3),
        (2, 6),
        (6, 2),
        (1, 12),
        (12, 1),
        (2, 3, 2),
        (3, 2, 2),
        (2, 1, 6),
    ]
    by_selection, by_description = {}, {}
    for view in views:
        for block in all_blocks(view):
            mask, description = selected(block).tobytes(), block.canonical()
            assert by_selection.setdefault(mask, description) == description
            assert by_description.setdefault(description, mask) == mask
    assert len(by_selection) > 150


def test_selection_hash_is_one_per_selection():
    aliases = [
        slt.Restriction([slt.Block("w", (2, 3, 4), (1, 2, 4), (1, 0, 0))]),
        slt.Restriction([slt.Block("w", (6, 4), (2, 4), (3, 0))]),
        slt.Restriction([slt.Block("w", (24,), (8,), (12,))]),
    ]
    assert len({alias.selection_hash for alias in aliases}) == 1
    whole = [slt.Restriction([slt.Block("w", view)]) for view in [(24,), (2, 12), (3, 2, 4)]]
    assert len({restriction.selection_hash for restriction in whole}) == 1
    others = [
        aliases[0],
        whole[0],
        slt.Restriction([slt.Block("v", (24,))]),
        slt.Restriction([slt.Block("w", (24,), (8,), (11,))]),
        slt.Restriction([slt.Block("w", (24,), (9,), (12,))]),
        slt.Restriction([slt.Block("w", (8, 3), (8, 1), (0, 0))]),
        head(0),
        head(1),
    ]
    hashes = [restriction.selection_hash for restriction in others]
    assert len(set(hashes)) == len(hashes)
    assert all(0 <= value < 2**31 for value in hashes)


def pieces(mask, view, generator):
    """Cut a selection into rectangles of a view at random: rows of it, and those into pieces."""
    found = []
    rows = mask.reshape(-1, view[-1])
    for number, row in enumerate(rows):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        for start, end in edges.reshape(-1, 2):
            cuts = np.unique([start, end, *generator.integers(start, end + 1, 2)])
            for first, last in itertools.pairwise(cuts):
                place = (number, int(first))
                found.append(slt.Block("w", (len(rows), view[-1]), (1, int(last - first)), place))
    return found


@pytest.mark.parametrize("seed", range(0, NUM_RANDOM_BLOCKS, 2))
def test_a_selection_is_the_same_however_it_is_cut(seed):
    generator = np.random.default_rng(seed)
    block = random_block(seed)
    size = math.prod(block.view)
    expected = slt.Restriction([block]).selection_hash
    # A rectangle, and a set that is none, in which one weight is exchanged for another.
    other = selected(block)
    if other.any() and not other.all():
        other[generator.choice(np.flatnonzero(other))] = False
        other[generator.choice(np.flatnonzero(~selected(block)))] = True
    hashes = set()
    for width in [d for d in range(1, size + 1) if size % d == 0]:
        cut = pieces(selected(block), (width,), generator)
        assert slt.Restriction(cut).selection_hash == expected
        hashes.add(slt.Restriction(pieces(other, (width,), generator)).selection_hash)
    assert len(hashes) == 1
    assert (hashes == {expected}) == np.array_equal(other, selected(block))


def test_all_sets_of_a_small_leaf_have_their_own_hash():
    generator = np.random.default_rng(0)
    masks = [np.asarray(mask, bool) for mask in itertools.product([0, 1], repeat=8)][1:]
    hashes = [slt.Restriction(pieces(mask, (4,), generator)).selection_hash for mask in masks]
    assert len(set(hashes)) == 255


def test_large_leaves_are_not_written_out():
    """Heads of a leaf of 10¹¹ weights, split in their inputs and seen in two ways."""
    view = (100, 8000, 128, 1000)
    whole = slt.Block("w", view, (1, 8000, 1, 1000), (7, 0, 3, 0))
    halves = [slt.Block("w", view, (1, 4000, 1, 1000), (7, half, 3, 0)) for half in (0, 4000)]
    halves[1] = slt.Block("w", (200, 4000, 128, 1000), (1, 4000, 1, 1000), (15, 0, 3, 0))
    assert slt.Restriction(halves).selection_hash == slt.Restriction([whole]).selection_hash
    with pytest.raises(ValueError, match="overlap"):
        slt.Restriction([whole, halves[1]])


def test_hash_does_not_depend_on_the_order_of_blocks_or_on_the_process():
    blocks = [slt.Block("a", (4,)), slt.Block("b", (4,), (2,), (1,))]
    forward, backward = slt.Restriction(blocks), slt.Restriction(blocks[::-1])
    assert forward.selection_hash == backward.selection_hash
    # The seed of stored runs: another value would change every chain's noise.
    assert forward.selection_hash == 990824434


@pytest.mark.parametrize(
    "other",
    [
        slt.Block("w", (4, 6), (1, 6), (1, 0)),
        slt.Block("w", (24,), (3,), (7,)),
        slt.Block("w", (2, 3, 4), (1, 1, 4), (0, 2, 0)),
    ],
)
def test_overlapping_blocks_are_refused_in_the_same_view_and_in_another(other):
    first = slt.Block("w", (4, 6), (2, 3), (0, 1))
    assert np.any(selected(first) & selected(other)), "the example itself"
    with pytest.raises(ValueError, match="overlap"):
        slt.Restriction([first, other])


def test_blocks_that_only_touch_are_accepted():
    first = slt.Block("w", (4, 6), (2, 3), (0, 1))
    beside = slt.Block("w", (4, 6), (2, 2), (0, 4))
    elsewhere = slt.Block("v", (4, 6), (2, 3), (0, 1))
    flat = slt.Block("w", (24,), (12,), (12,))
    assert slt.Restriction([first, beside, elsewhere, flat]).num_params == 6 + 4 + 6 + 12


def test_overlap_is_found_exactly():
    blocks = [random_block(seed) for seed in range(60)]
    pairs = [
        (a, b)
        for a, b in itertools.combinations(blocks, 2)
        if math.prod(a.view) == math.prod(b.view)
    ]
    verdicts = set()
    for first, second in pairs:
        overlaps = bool(np.any(selected(first) & selected(second)))
        verdicts.add(overlaps)
        if overlaps:
            with pytest.raises(ValueError, match="overlap"):
                slt.Restriction([first, second])
        else:
            slt.Restriction([first, second])
    assert verdicts == {True, False}


@pytest.mark.parametrize(
    ("view", "size", "start"),
    [
        ((4, 6), (2, 6), (3, 0)),
        ((4, 6), (2, 6), (-1, 0)),
        ((4, 6), (2,), (0,)),
        ((4, 6), (0, 6), (0, 0)),
        ((4, 6), (4, 6), (0,)),
    ],
)
def test_a_block_must_lie_inside_its_view(view, size, start):
    with pytest.raises(ValueError, match="block of 'w'"):
        slt.Block("w", view, size, start)


def test_unknown_paths_bad_views_and_idle_patterns_are_refused():
    with pytest.raises(ValueError, match=r"unknown path 'atention'.*attention, output"):
        POSTERIOR.restrict(slt.Restriction([slt.Block("atention", (3, 12))]))
    with pytest.raises(ValueError, match=r"view \(5, 7\) does not hold the 36 weights"):
        POSTERIOR.restrict(slt.Restriction([slt.Block("attention", (5, 7))]))
    with pytest.raises(ValueError, match=r"no parameter matches 'mlp\*'.*attention, output"):
        slt.Restriction.from_paths(PARAMS, ["attention", "mlp*"])
    with pytest.raises(ValueError, match="list of strings"):
        slt.Restriction.from_paths(PARAMS, "attention")
    with pytest.raises(ValueError, match="at least one block"):
        slt.Restriction([])
    with pytest.raises(ValueError, match="same number of weights"):
        slt.Restriction([slt.Block("w", (4,), (1,)), slt.Block("w", (6,), (1,))])


def test_patterns_select_whole_leaves_in_tree_order():
    params = {"layers": [{"q": np.ones(2), "k": np.ones(3)}, {"q": np.ones(4), "k": np.ones(5)}]}
    assert slt.Restriction.from_paths(params, ["layers/1/*", "*/q"]).labels == (
        "layers/0/q",
        "layers/1/k",
        "layers/1/q",
    )
    assert slt.Restriction.full(params).num_params == 14


def test_equal_signatures_share_a_program():
    assert head(0).signature == head(1).signature
    assert jax.tree.structure(head(0)) == jax.tree.structure(head(1))
    assert head(0).signature != slt.Restriction.from_paths(PARAMS, ["attention"]).signature
