"""Components by name, against slices written by hand, on layouts of several architectures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.models import Components
from tests.helpers import unchecked_annotations
from tests.models import layouts
from tests.models.layouts import ARCHITECTURES, SIZES, selected

NAMES = list(ARCHITECTURES)
NUM_LAYERS = SIZES["l"]


def make(name):
    """The weights of an architecture and their components."""
    params, axes = layouts.make(name)
    return params, Components(params, axes)


def numbers(*arrays):
    return np.sort(np.concatenate([np.ravel(array) for array in arrays]))


def layer_leaves(params, layer, keep):
    """The slices of layer ``layer`` of the leaves whose names ``keep`` accepts."""
    outside = ("embed", "unembed", "final_norm")
    return [
        leaf[layer] for path, leaf in params.items() if not path.startswith(outside) and keep(path)
    ]


def is_norm(path):
    return "norm" in path


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_their_slices(name):
    params, components = make(name)
    _, num_heads, num_groups, _ = ARCHITECTURES[name]
    heads = components.heads()
    assert list(heads)[:2] == ["l0h0", "l0h1"]
    assert len(heads) == NUM_LAYERS * num_heads
    for layer in range(NUM_LAYERS):
        for head in range(num_heads):
            group = head * num_groups // num_heads
            slices = {
                "q": [params["attn.q"][layer, :, head]],
                "k": [params["attn.k"][layer, :, group]],
                "v": [params["attn.v"][layer, :, group]],
                "o": [params["attn.o"][layer, head]],
            }
            if "attn.q_b" in params:
                slices["q"].append(params["attn.q_b"][layer, head])
                slices["k"].append(params["attn.k_b"][layer, group])
                slices["v"].append(params["attn.v_b"][layer, group])
            short = f"l{layer}h{head}"
            for part, arrays in slices.items():
                got = selected(params, components[f"{short} {part}"])
                np.testing.assert_array_equal(got, numbers(*arrays))
            whole = numbers(*(array for arrays in slices.values() for array in arrays))
            np.testing.assert_array_equal(selected(params, heads[short]), whole)
            np.testing.assert_array_equal(
                selected(params, components.heads(kv=False)[f"{short} qo"]),
                numbers(*slices["q"], *slices["o"]),
            )


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_their_heads_with_the_keys_and_values_they_share(name):
    params, components = make(name)
    _, num_heads, num_groups, _ = ARCHITECTURES[name]
    per_group = num_heads // num_groups
    for layer in range(NUM_LAYERS):
        for group in range(num_groups):
            heads = [f"l{layer}h{group * per_group + i}" for i in range(per_group)]
            of_group = components.groups()[f"l{layer}g{group}"]
            np.testing.assert_array_equal(
                selected(params, of_group), selected(params, components[heads])
            )
    query = components["l1g0 q"].blocks[0]
    assert query.size[2] == per_group


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_layers_are_their_slices(name):
    params, components = make(name)
    expected = {
        "l1": layer_leaves(params, 1, lambda path: True),
        "l1 attn": layer_leaves(
            params, 1, lambda path: path.startswith("attn.") and not is_norm(path)
        ),
        "l1 mlp": layer_leaves(params, 1, lambda path: path.startswith("mlp.")),
        "l1 norm": layer_leaves(params, 1, lambda path: path.startswith("norm.")),
        "l1 qk_norm": layer_leaves(
            params, 1, lambda path: path.startswith("attn.") and is_norm(path)
        ),
        "l1 attn.o": [params["attn.o"][1]],
        "l1 *_b": layer_leaves(params, 1, lambda path: path.endswith("_b")),
        "embed": [params["embed.tok"]],
        "embed.pos": [params["embed.pos"]] if "embed.pos" in params else [],
        "unembed": [leaf for path, leaf in params.items() if path.startswith("unembed")],
        "final_norm": [leaf for path, leaf in params.items() if path.startswith("final_norm")],
        "full": list(params.values()),
    }
    for short, slices in expected.items():
        if slices:
            got = selected(params, components[short])
            np.testing.assert_array_equal(got, numbers(*slices), err_msg=short)
        else:
            with pytest.raises(ValueError, match=r"no weights are called|is tied"):
                components[short]


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_the_rest_cover_every_weight_once(name):
    params, components = make(name)
    rest = ["l{} attn.o_b", "l{} mlp", "l{} norm", "l{} qk_norm"]
    rest = [part.format(layer) for part in rest for layer in range(NUM_LAYERS)]
    rest += ["embed", "embed.pos", "unembed", "final_norm"]
    parts = list(components.groups().values())
    for short in rest:
        try:
            parts.append(components[short])
        except ValueError:
            assert short.split(" ")[-1] not in components.layout.paths
    found = np.concatenate([selected(params, part) for part in parts])
    total = sum(leaf.size for leaf in params.values())
    np.testing.assert_array_equal(np.sort(found), 1 + np.arange(total))
    # One restriction of all the parts exists only if no two of them overlap.
    assert slt.Restriction(b for part in parts for b in part.blocks).num_params == total


@pytest.mark.parametrize("name", NAMES)
def test_components_of_a_kind_share_one_program(name):
    _, components = make(name)
    kinds = [components.heads(), components.heads(kv=False), components.groups()]
    kinds += [components.layers()] + ([components.mlps()] if "mlp" in name else [])
    for kind in kinds:
        assert len({restriction.signature for restriction in kind.values()}) == 1
        assert len({restriction.selection_hash for restriction in kind.values()}) == len(kind)


@pytest.mark.parametrize(
    ("name", "aliases"),
    [
        ("gpt2", ["l1h2", "L1H2", " l1 h2 ", "l1h2 qkvo", "l1h2 q + l1h2 kv + l1h2 o", "l1g2"]),
        ("gpt2", ["l1 attn.q", "blocks.1.attn.W_Q"]),
        ("gpt2", ["l1h2 q", "blocks.1.attn.W_Q[2] + blocks.1.attn.b_Q[2]"]),
        (
            "gpt2",
            [
                "l1 attn.[qkv]",
                "h.1.attn.c_attn.weight",
                "transformer.h.1.attn.c_attn.weight",
                "gpt_neox.layers.1.attention.query_key_value.weight",
                "blocks.1.attn.W_Q + blocks.1.attn.W_K + blocks.1.attn.W_V",
            ],
        ),
        ("gpt2", ["l0 attn", "transformer.h.0.attn", "blocks.0.attn", ["l0 attn"]]),
        ("gpt2", ["l2", "transformer.h.2", "blocks.2", "l2 attn + l2 mlp + l2 norm"]),
        ("gpt2", ["l2 mlp.down_b", "blocks.2.mlp.b_out", "transformer.h.2.mlp.c_proj.bias"]),
        ("gpt2", ["l2 norm.attn", "blocks.2.ln1.w", "transformer.h.2.ln_1.weight"]),
        ("gpt2", ["embed", "embed.tok", "transformer.wte.weight", "embed.W_E"]),
        ("gpt2", ["embed.pos", "transformer.wpe.weight", "pos_embed.W_pos"]),
        ("gpt2", ["final_norm", "transformer.ln_f", "ln_final", "ln_final.w + ln_final.b"]),
        ("gpt2", ["embed + embed.pos", "embed.*", ["embed.pos", "embed.tok"]]),
        ("gpt2", ["attn.q", "*.q", ["attn.q"]]),
        ("qwen3", ["l0h5 k", "l0h3 k", "l0g1 k", "blocks.0.attn._W_K[5]"]),
        ("qwen3", ["l0 mlp.gate", "model.layers.0.mlp.gate_proj.weight", "blocks.0.mlp.W_gate"]),
        ("qwen3", ["l0 norm.mlp", "model.layers.0.post_attention_layernorm.weight"]),
        ("qwen3", ["l0 mlp", "model.layers.0.mlp", "blocks.0.mlp"]),
        ("qwen3", ["l0 attn + l0 qk_norm", "model.layers.0.self_attn"]),
        ("olmo2", ["l0 norm.attn_post", "model.layers.0.post_attention_layernorm.weight"]),
        ("olmo2", ["l0 norm.mlp_post", "model.layers.0.post_feedforward_layernorm.weight"]),
        ("phi", ["unembed", "lm_head", "lm_head.weight + lm_head.bias", "unembed.W_U + unembed_b"]),
        ("phi", ["l1 mlp", "model.layers.1.mlp.fc1 + model.layers.1.mlp.fc2"]),
    ],
)
def test_names_of_the_same_weights_are_the_same_component(name, aliases):
    params, components = make(name)
    first, *others = (components[alias] for alias in aliases)
    for alias, other in zip(aliases[1:], others, strict=True):
        assert other.selection_hash == first.selection_hash, alias
        assert other.signature == first.signature, alias
    assert len(np.unique(selected(params, first))) == first.num_params


def test_unions_count_equal_rectangles_once_and_refuse_partial_overlaps():
    params, components = make("qwen3")
    pair = components["l0h0 + l0h1"]
    keys = params["attn.k"][0, :, 0].size
    assert pair.num_params == 2 * components["l0h0"].num_params - 2 * keys
    assert components["l0h1 + l0h0"].signature == pair.signature
    with pytest.raises(ValueError, match="overlap"):
        components["l0 + l0h1"]


def test_functions_and_names_of_ones_own_select():
    params, _ = make("gpt2")
    mine = slt.Restriction([slt.Block("mlp.up", params["mlp.up"].shape, (1, 10, 2), (2, 0, 4))])
    components = Components(params, named={"two + neurons": mine})
    assert components["two + neurons"].signature == mine.signature
    assert components[lambda path: path.endswith("_b")].num_params == sum(
        leaf.size for path, leaf in params.items() if path.endswith("_b")
    )
    assert list(components.leaves()) == sorted(params)
    with pytest.raises(ValueError, match="no path satisfies"):
        components[lambda path: False]
    with pytest.raises(ValueError, match="unknown path"):
        Components({"w": np.zeros(3)}, named={"mine": mine})


def test_paths_of_nested_trees_are_names():
    tree = {
        "embed": {"embedding": np.zeros((7, 3))},
        "layers": [{"kernel": np.zeros((3, 3)), "bias": np.zeros(3)} for _ in range(2)],
    }
    components = Components(tree)
    assert components["embed"].labels == ("embed/embedding",)
    assert components["layers/1"].labels == ("layers/1/bias", "layers/1/kernel")
    assert components["layers/*/bias"].num_params == 6
    assert components["full"].num_params == 45
    nested = Components(
        {"attn": {"q": np.zeros((2, 4, 3, 5)), "o": np.zeros((2, 3, 5, 4))}},
        {"attn/q": "l d h k", "attn/o": "l h k d"},
    )
    assert nested["l1h2"].num_params == 40


def test_shapes_are_enough():
    params, components = make("qwen3")
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params))
    abstract = Components(shapes, ARCHITECTURES["qwen3"][0])
    assert abstract["l1h2"].selection_hash == components["l1h2"].selection_hash


def test_tied_unembedding_has_no_component_of_its_own():
    _, components = make("gpt2")
    for name in ("unembed", "lm_head.weight", "unembed.W_U"):
        with pytest.raises(ValueError, match=r"tied to 'embed\.tok'"):
            components[name]
    named = Components({"wte": np.zeros((5, 2))}, {"wte": "v d"}, tied={"unembed": "wte"})
    with pytest.raises(ValueError, match="tied to 'wte'"):
        named["unembed"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("l3", "layer 3 does not exist: the model has layers 0 to 2"),
        ("l0h6", "head 6 does not exist: the model has heads 0 to 5"),
        ("l0g2", "group 2 does not exist: the model has groups 0 to 1"),
        ("blocks.0.attn.W_Q[6]", "head 6 does not exist"),
        ("l0h1 mlp", "parts q, k, v and o"),
        ("l0 experts", r"no weights are called 'l0 experts'.*'l0h0' to 'l2h5'"),
        ("embed.pos", "no weights are called"),
        ("norm", "no weights are called"),
        ("model.layers.0.mlp.up_proj.bias", "no weights are called"),
        ("", "no weights are called"),
    ],
)
def test_what_is_not_there_is_refused_with_what_there_is(selection, message):
    _, components = make("qwen3")
    with pytest.raises(ValueError, match=message):
        components[selection]


def test_a_selection_of_another_kind_is_refused():
    _, components = make("qwen3")
    with unchecked_annotations(), pytest.raises(TypeError, match="name, a list of names"):
        components[3]  # type: ignore[index]


def test_lists_need_axes():
    components = Components({"w": np.zeros((2, 3))})
    for method in (components.heads, components.groups, components.layers, components.mlps):
        with pytest.raises(ValueError, match="axes"):
            method()
    with pytest.raises(ValueError, match="no weights are called 'l0 mlp'"):
        make("attention only")[1].mlps()


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"v": "a b"}, "'v', which is not among the paths"),
        ({"w": "ab"}, "separate the names by blanks"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        Components({"w": np.zeros((2, 3))}, axes)


def test_extents_that_do_not_fit_are_refused():
    uneven = Components({"a": np.zeros(2), "b": np.zeros(3)}, {"a": "l", "b": "l"})
    with pytest.raises(ValueError, match="one extent"):
        uneven.layers()
    odd = {"attn.q": np.zeros((1, 3)), "attn.k": np.zeros((1, 2))}
    with pytest.raises(ValueError, match="cannot share"):
        Components(odd, {"attn.q": "l h", "attn.k": "l g"}).groups()


def test_preview_prints_rectangles_and_counts(capsys):
    _, components = make("qwen3")
    components.preview("l2h4")
    components.preview("l0g1 q")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("'l2h4': 160 of ")
    assert lines[1] == "  attn.k  [2, :, 1, :] of [l d g k = 3 10 2 4]  40"
    assert lines[3] == "  attn.q  [2, :, 4, :] of [l d h k = 3 10 6 4]  40"
    assert lines[6] == "  attn.q  [0, :, 3:6, :] of [l d h k = 3 10 6 4]  120"
    assert "'l0h0' to 'l2h5'" in repr(components)


def test_heads_are_sampled_side_by_side():
    generator = np.random.default_rng(0)
    params, components = make("attention only")
    params = jax.tree.map(lambda leaf: 0.1 * generator.normal(size=leaf.shape), params)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)

    def loss(params, tokens):
        x = params["embed.tok"][tokens] + params["embed.pos"]
        values = jnp.einsum("btd,ldgk->lbtgk", x, params["attn.v"])
        x = x + jnp.einsum("lbtgk,lgkd->btd", values, params["attn.o"])
        scores = jnp.einsum("btd,vd->btv", x, params["unembed"])
        return -jax.nn.log_softmax(scores)[..., 0]

    tokens = generator.integers(0, SIZES["v"], (16, SIZES["p"]))
    heads = {name: components.heads()[name] for name in ("l0h1", "l2h3")}
    posterior = slt.LocalPosterior(loss, params, 5.0, 10.0, restriction=heads["l0h1"])
    run = slt.sample(
        posterior,
        slt.sgld(1e-4),
        slt.Batches(tokens, 8),
        jax.random.key(0),
        components=heads,
        num_chains=2,
        num_draws=4,
        num_burnin_steps=0,
        collect=slt.Positions(),
        progress=False,
    )
    assert run.traces["gap"].shape == (2, 2, 4)
    assert run.health.alive.all()
    assert run.positions["attn.o"].shape == (2, 2, 4, 1, 1, 3, 10)
