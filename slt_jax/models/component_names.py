"""What other libraries call the same weights: names of TransformerLens and of Hugging Face."""

import re
from collections.abc import Collection

from slt_jax.models.component_grammar import Term

_ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.o", "attn.q_norm", "attn.k_norm")
_MLP = ("mlp.gate", "mlp.up", "mlp.down")

# TransformerLens, HookedTransformer.state_dict(); with grouped heads the stored keys and values
# have an underscore in front of their names.
_LENS_IN_LAYER: dict[str, tuple[str, ...]] = {
    "attn": _ATTENTION,
    "mlp": _MLP,
    "ln1": ("norm.attn",),
    "ln2": ("norm.mlp",),
    "ln1_post": ("norm.attn_post",),
    "ln2_post": ("norm.mlp_post",),
    "attn.W_Q": ("attn.q",),
    "attn.W_K": ("attn.k",),
    "attn.W_V": ("attn.v",),
    "attn.W_O": ("attn.o",),
    "mlp.W_in": ("mlp.up",),
    "mlp.W_gate": ("mlp.gate",),
    "mlp.W_out": ("mlp.down",),
}
_LENS_BIASES = {
    "attn.b_Q": "attn.q_b",
    "attn.b_K": "attn.k_b",
    "attn.b_V": "attn.v_b",
    "attn.b_O": "attn.o_b",
    "mlp.b_in": "mlp.up_b",
    "mlp.b_gate": "mlp.gate_b",
    "mlp.b_out": "mlp.down_b",
}
_LENS_OUTSIDE = {
    "embed.W_E": "embed.tok",
    "pos_embed": "embed.pos",
    "pos_embed.W_pos": "embed.pos",
    "unembed.W_U": "unembed",
    "unembed.b_U": "unembed_b",
    "ln_final.w": "final_norm",
    "ln_final.b": "final_norm_b",
}
_LENS = re.compile(r"blocks\.(\d+)(?:\.([\w.]+))?(?:\[(\d+)\])?")

# Hugging Face: GPT-2, GPT-NeoX, Llama and its relatives, Gemma, OLMo, Phi, Phi-3.
_HF_IN_LAYER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("attn", "attention", "self_attn"), _ATTENTION),
    "mlp": _MLP,
    "attn.c_attn": ("attn.q", "attn.k", "attn.v"),
    "attention.query_key_value": ("attn.q", "attn.k", "attn.v"),
    "self_attn.qkv_proj": ("attn.q", "attn.k", "attn.v"),
    "self_attn.q_proj": ("attn.q",),
    "self_attn.k_proj": ("attn.k",),
    "self_attn.v_proj": ("attn.v",),
    **dict.fromkeys(
        ("attn.c_proj", "attention.dense", "self_attn.o_proj", "self_attn.dense"), ("attn.o",)
    ),
    "self_attn.q_norm": ("attn.q_norm",),
    "self_attn.k_norm": ("attn.k_norm",),
    "mlp.gate_up_proj": ("mlp.gate", "mlp.up"),
    "mlp.gate_proj": ("mlp.gate",),
    **dict.fromkeys(("mlp.c_fc", "mlp.dense_h_to_4h", "mlp.fc1", "mlp.up_proj"), ("mlp.up",)),
    **dict.fromkeys(("mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.down_proj"), ("mlp.down",)),
    **dict.fromkeys(("ln_1", "input_layernorm"), ("norm.attn",)),
    **dict.fromkeys(("ln_2", "pre_feedforward_layernorm"), ("norm.mlp",)),
    "post_feedforward_layernorm": ("norm.mlp_post",),
}
_HF_OUTSIDE = {
    **dict.fromkeys(("embed_tokens", "wte", "embed_in"), "embed.tok"),
    "wpe": "embed.pos",
    **dict.fromkeys(("lm_head", "embed_out"), "unembed"),
    **dict.fromkeys(("norm", "ln_f", "final_layer_norm", "final_layernorm"), "final_norm"),
}
_HF = re.compile(
    r"(?:model\.|transformer\.|gpt_neox\.)?"
    r"(?:(?:layers|h)\.(\d+)(?:\.([\w.]+?))??|(\w+))(?:\.(weight|bias))?"
)


def translate(name: str, leaves: Collection[str]) -> Term | None:
    """Give what a name of TransformerLens or Hugging Face stands for; None if it is not one.

    The name of a module stands for all weights in it, and one with ``.weight`` or ``.bias`` for
    that array. A fused array is the leaves that it is split into. A head of TransformerLens is
    written as an index: ``blocks.0.attn.W_Q[3]``.

    Args:
        name: such as ``"blocks.0.attn.W_Q"`` or ``"transformer.h.0.attn.c_attn.weight"``.
        leaves: the names of the leaves of the model.

    >>> translate("transformer.h.3.attn.c_attn.bias", ()).leaves
    ('attn.q_b', 'attn.k_b', 'attn.v_b')
    >>> translate("blocks.0.attn.W_K[5]", ())
    Term(leaves=('attn.k',), layer=0, head=5, group=None)
    """
    return _from_lens(name) or _from_hugging_face(name, leaves)


def _from_lens(name: str) -> Term | None:
    if name in _LENS_OUTSIDE:
        return Term((_LENS_OUTSIDE[name],))
    if name == "ln_final":
        return Term(("final_norm", "final_norm_b"))
    match = _LENS.fullmatch(name)
    if match is None:
        return None
    layer, part, head = match.groups()
    number = None if head is None else int(head)
    if part is None:
        return Term(("*",), int(layer), head=number)
    part = part.replace("attn._", "attn.")
    if part in _LENS_BIASES:
        return Term((_LENS_BIASES[part],), int(layer), head=number)
    norm = re.fullmatch(r"(ln[12](?:_post)?)\.([wb])", part)
    if norm is not None:
        (leaf,) = _LENS_IN_LAYER[norm[1]]
        return Term((leaf if norm[2] == "w" else leaf + "_b",), int(layer))
    known = _LENS_IN_LAYER.get(part)
    if known is None:
        return None
    return Term(known if "W_" in part else _with_biases(known), int(layer), head=number)


def _from_hugging_face(name: str, leaves: Collection[str]) -> Term | None:
    match = _HF.fullmatch(name)
    if match is None:
        return None
    layer, part, outside, kind = match.groups()
    if outside is not None:
        # "norm" alone, without "model." or ".weight", says too little.
        known = (_HF_OUTSIDE[outside],) if outside in _HF_OUTSIDE and name != "norm" else None
    elif part is None:
        return None if kind else Term(("*",), int(layer))
    elif part == "post_attention_layernorm":
        # After attention in models that have such a norm, before the MLP in those that do not.
        known = ("norm.attn_post",) if "norm.attn_post" in leaves else ("norm.mlp",)
    else:
        known = _HF_IN_LAYER.get(part)
    if known is None:
        return None
    if kind == "bias":
        known = tuple(f"{leaf}_b" for leaf in known)
    elif kind is None:
        known = _with_biases(known)
    return Term(known, None if layer is None else int(layer))


def _with_biases(names: tuple[str, ...]) -> tuple[str, ...]:
    return names + tuple(f"{name}_b" for name in names)
