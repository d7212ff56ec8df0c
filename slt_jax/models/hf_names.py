"""Where each parameter lies in the checkpoints of each family, under Hugging Face's names."""

from collections.abc import Callable

from slt_jax.models.config import DecoderConfig
from slt_jax.models.layout import parameter_axes
from slt_jax.models.tensor_view import TensorView

Views = dict[str, TensorView]

IGNORED_SUFFIXES = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)
"""Buffers in old checkpoints: rotary tables and causal masks, which follow from the config."""

LINEAR_TO = {"h": "(h k) d", "g": "(g k) d", "f": "f d", "o": "d (h k)", "down": "d f"}


def tensor_views(config: DecoderConfig) -> Views:
    """Map every parameter's name to where it lies in a checkpoint of the config's model type."""
    views = FAMILY_VIEWS[config.model_type](config)
    wanted = parameter_axes(config)
    return {name: views[name] for name in wanted}


def _one(name: str, pattern: str, prefix: str) -> TensorView:
    """A tensor that belongs to one parameter; checkpoints of the bare model lack the prefix."""
    return TensorView((prefix + name, name) if prefix else (name,), pattern)


def _linear(name: str, leaf: str, to: str, prefix: str) -> Views:
    """A PyTorch linear map and its bias."""
    bias = {"h": "(h k)", "g": "(g k)", "f": "f"}.get(to, "d")
    return {
        leaf: _one(f"{name}.weight", LINEAR_TO[to], prefix),
        f"{leaf}_b": _one(f"{name}.bias", bias, prefix),
    }


def _norm(name: str, leaf: str, prefix: str) -> Views:
    return {
        leaf: _one(f"{name}.weight", "d", prefix),
        f"{leaf}_b": _one(f"{name}.bias", "d", prefix),
    }


def _head(name: str = "lm_head", *others: str) -> Views:
    names = (name, *others)
    return {
        "unembed": TensorView(tuple(f"{n}.weight" for n in names), "v d"),
        "unembed_b": TensorView(tuple(f"{n}.bias" for n in names), "v"),
    }


def _fused(stored: str, weight: str, bias: str, prefix: str) -> Views:
    """Queries, keys and values, three equal parts of one linear map, cut where the * stands."""
    views: Views = {}
    for part, (leaf, head) in enumerate((("q", "h"), ("k", "g"), ("v", "g"))):
        for suffix, kind, pattern in (("", "weight", weight), ("_b", "bias", bias)):
            name = f"{stored}.{kind}"
            places = prefix + name, name
            views[f"attn.{leaf}{suffix}"] = TensorView(places, pattern.replace("h", head), 3, part)
    return views


def _llama(config: DecoderConfig) -> Views:
    """Llama's names, which Mistral, Qwen, Gemma 1 and OLMo share."""
    layer, prefix = "layers.{l}.", "model."
    norm = "(h k)" if config.qk_norm_across_heads else "k"
    views = {"embed.tok": _one("embed_tokens.weight", "v d", prefix)} | _head()
    for leaf, to in (("q", "h"), ("k", "g"), ("v", "g"), ("o", "o")):
        views |= _linear(f"{layer}self_attn.{leaf}_proj", f"attn.{leaf}", to, prefix)
    for leaf, to in (("gate", "f"), ("up", "f"), ("down", "down")):
        views |= _linear(f"{layer}mlp.{leaf}_proj", f"mlp.{leaf}", to, prefix)
    views |= _norm(f"{layer}input_layernorm", "norm.attn", prefix)
    views |= _norm(f"{layer}post_attention_layernorm", "norm.mlp", prefix)
    views |= _norm("norm", "final_norm", prefix)
    views["attn.q_norm"] = _one(f"{layer}self_attn.q_norm.weight", norm, prefix)
    views["attn.k_norm"] = _one(f"{layer}self_attn.k_norm.weight", norm.replace("h", "g"), prefix)
    return views


def _four_norms(config: DecoderConfig) -> Views:
    """Gemma 2 and 3 and OLMo 2, where ``post`` means after attention, not before the MLP."""
    layer, prefix = "layers.{l}.", "model."
    views = _llama(config)
    views |= _norm(f"{layer}post_attention_layernorm", "norm.attn_post", prefix)
    views |= _norm(f"{layer}pre_feedforward_layernorm", "norm.mlp", prefix)
    return views | _norm(f"{layer}post_feedforward_layernorm", "norm.mlp_post", prefix)


def _gpt2(config: DecoderConfig) -> Views:
    """GPT-2's names; its linear maps are stored input first."""
    layer, prefix = "h.{l}.", "transformer."
    views = {
        "embed.tok": _one("wte.weight", "v d", prefix),
        "embed.pos": _one("wpe.weight", "p d", prefix),
        "attn.o": _one(f"{layer}attn.c_proj.weight", "(h k) d", prefix),
        "attn.o_b": _one(f"{layer}attn.c_proj.bias", "d", prefix),
        "mlp.up": _one(f"{layer}mlp.c_fc.weight", "d f", prefix),
        "mlp.up_b": _one(f"{layer}mlp.c_fc.bias", "f", prefix),
        "mlp.down": _one(f"{layer}mlp.c_proj.weight", "f d", prefix),
        "mlp.down_b": _one(f"{layer}mlp.c_proj.bias", "d", prefix),
    }
    views |= _norm(f"{layer}ln_1", "norm.attn", prefix) | _norm(f"{layer}ln_2", "norm.mlp", prefix)
    views |= _norm("ln_f", "final_norm", prefix) | _head()
    views |= _fused(f"{layer}attn.c_attn", "d (* h k)", "(* h k)", prefix)
    return views


def _gpt_neox(config: DecoderConfig) -> Views:
    layer, prefix = "layers.{l}.", "gpt_neox."
    views = {"embed.tok": _one("embed_in.weight", "v d", prefix)} | _head("embed_out", "lm_head")
    views |= _linear(f"{layer}attention.dense", "attn.o", "o", prefix)
    views |= _linear(f"{layer}mlp.dense_h_to_4h", "mlp.up", "f", prefix)
    views |= _linear(f"{layer}mlp.dense_4h_to_h", "mlp.down", "down", prefix)
    views |= _norm(f"{layer}input_layernorm", "norm.attn", prefix)
    views |= _norm(f"{layer}post_attention_layernorm", "norm.mlp", prefix)
    views |= _norm("final_layer_norm", "final_norm", prefix)
    views |= _fused(f"{layer}attention.query_key_value", "(h * k) d", "(h * k)", prefix)
    return views


def _phi(config: DecoderConfig) -> Views:
    layer, prefix = "layers.{l}.", "model."
    views = _llama(config)
    views |= _linear(f"{layer}self_attn.dense", "attn.o", "o", prefix)
    views |= _linear(f"{layer}mlp.fc1", "mlp.up", "f", prefix)
    views |= _linear(f"{layer}mlp.fc2", "mlp.down", "down", prefix)
    views |= _norm("final_layernorm", "final_norm", prefix)
    for leaf in ("q", "k"):
        for suffix, kind in (("", "weight"), ("_b", "bias")):
            name = f"{layer}self_attn.{leaf}_layernorm.{kind}"
            views[f"attn.{leaf}_norm{suffix}"] = _one(name, "k", prefix)
    return views


def _phi3(config: DecoderConfig) -> Views:
    """Phi-3, which stacks query, key and value heads, and gate and up projections."""
    layer, prefix = "layers.{l}.", "model."
    views = _llama(config)
    heads, groups = config.num_heads, config.num_kv_heads
    qkv, gate_up = f"{layer}self_attn.qkv_proj.weight", f"{layer}mlp.gate_up_proj.weight"
    total = heads + 2 * groups
    for leaf, letter, start, stop in (
        ("q", "h", 0, heads),
        ("k", "g", heads, heads + groups),
        ("v", "g", heads + groups, total),
    ):
        views[f"attn.{leaf}"] = TensorView(
            (prefix + qkv, qkv), "(* k) d", total, (start, stop), letter
        )
    for part, leaf in enumerate(("gate", "up")):
        views[f"mlp.{leaf}"] = TensorView((prefix + gate_up, gate_up), "(* f) d", 2, part)
    return views


FAMILY_VIEWS: dict[str, Callable[[DecoderConfig], Views]] = {
    "attention_only": _gpt2,
    "gemma": _llama,
    "gemma2": _four_norms,
    "gemma3_text": _four_norms,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _llama,
    "olmo": _llama,
    "olmo2": _four_norms,
    "phi": _phi,
    "phi3": _phi3,
    "qwen2": _llama,
    "qwen3": _llama,
}
