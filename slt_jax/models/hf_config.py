"""From a Hugging Face ``config.json``, as written by any version since 4, to a decoder's config.

The file is read here and not by ``transformers``: the result does not depend on what is installed.
What a file leaves out has the value that the model type's configuration class gives it.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from slt_jax.models.config import MAX_SIZE, DecoderConfig
from slt_jax.models.norm import Norm
from slt_jax.models.rope import LinearScaling, Llama3Scaling, Rope

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
_ELSEWHERE = (
    "Any other model can be given as functions, with slt_jax.models.from_functions(params, "
    "loss_fn), or as a PyTorch module, with the experimental slt_jax.models.from_torch"
)
MAX_LAYERS = 10_000
"""More layers than this are taken for a damaged file, before a list of them fills the memory."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def parse_config(text: str) -> DecoderConfig:
    """Give the decoder's config for the text of a ``config.json``.

    Raises:
        ValueError: not a JSON object, a model type or a setting that is not supported, a missing
            size; the message says what is supported.

    >>> config = parse_config('{"model_type": "attention_only", "n_embd": 8, "n_head": 2, '
    ...                       '"n_layer": 2, "n_positions": 16, "vocab_size": 11}')
    >>> config.num_layers, config.mlp_width, config.tied
    (2, 0, True)
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config.json is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"config.json must hold an object, got {type(raw).__name__}")
    model_type = str(raw.get("model_type", ""))
    _refuse_what_is_unsupported(model_type, raw)
    try:
        return FAMILIES[model_type](_Raw(raw, text))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"config.json does not describe a {model_type}: {error}") from error


class _Raw:
    """The settings of one file, with errors that name what is missing."""

    def __init__(self, settings: Mapping[str, Any], text: str):
        self.settings, self.text = settings, text

    def size(self, key: str) -> int:
        value = self.settings.get(key)
        limit = MAX_LAYERS if "layer" in key else MAX_SIZE
        if type(value) is not int or not 1 <= value <= limit:
            raise ValueError(f"{key} must be a positive integer, at most {limit:,}, got {value!r}")
        return value

    def optional_size(self, key: str) -> int | None:
        return None if self.settings.get(key) is None else self.size(key)

    def get(self, key: str, default: Any) -> Any:
        return self.settings.get(key, default)

    def factor(self, key: str, default: float | None) -> float | None:
        value = self.settings.get(key, default)
        return None if value is None else float(value)

    def first(self, *keys: str, default: Any) -> Any:
        """The first of these settings that is there and not null."""
        found = (self.settings[key] for key in keys if self.settings.get(key) is not None)
        return next(found, default)

    def activation(self, *keys: str, default: str) -> Callable[[jax.Array], jax.Array]:
        name = self.first(*keys, default=default)
        if name not in ACTIVATIONS:
            raise ValueError(
                f"activation {name!r} is not supported; known are {', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[name]


def _refuse_what_is_unsupported(model_type: str, raw: Mapping[str, Any]) -> None:
    experts = [key for key in EXPERTS if isinstance(raw.get(key), int) and raw[key] > 1]
    if experts or "moe" in model_type or model_type in ("mixtral", "dbrx", "gpt_oss"):
        named = f" ({experts[0]} = {raw[experts[0]]})" if experts else ""
        raise ValueError(
            f"mixtures of experts are not supported: model type {model_type!r}{named}. {_ELSEWHERE}"
        )
    if model_type not in FAMILIES:
        text = raw.get("text_config")
        inner = text.get("model_type") if isinstance(text, dict) else None
        hint = f"; its text model {inner!r} must be saved on its own" if inner else ""
        raise ValueError(
            f"unknown model type {model_type!r}{hint}. Known are {', '.join(FAMILIES)}. "
            f"{_ELSEWHERE}"
        )
    for key in ("quantization_config", "add_cross_attention", "use_bidirectional_attention"):
        if raw.get(key):
            raise ValueError(f"config.json: {key} = {raw[key]!r} is not supported; unset it")


def _rotary(
    raw: _Raw, head_dim: int, *, theta: float = 1e4, share: float = 1.0, name: str = ""
) -> Rope:
    """Read one rotary table, from ``rope_parameters`` (5) or from single settings (4)."""
    nested = raw.get("rope_parameters", None) or {}
    if name and name in nested:
        nested = nested[name]
    old = raw.get("rope_scaling", None) or {}
    scaling = {**old, **nested}
    theta = nested.get("rope_theta") or raw.first("rope_theta", "rotary_emb_base", default=theta)
    share = scaling.get(
        "partial_rotary_factor", raw.first("partial_rotary_factor", "rotary_pct", default=share)
    )
    return Rope(float(theta), int(head_dim * share), _scaling(raw, scaling))


def _scaling(raw: _Raw, settings: Mapping[str, Any]) -> LinearScaling | Llama3Scaling | None:
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(float(settings["factor"]))
    if kind == "llama3":
        original = raw.get("original_max_position_embeddings", None) or settings.get(
            "original_max_position_embeddings", raw.get("max_position_embeddings", 0)
        )
        return Llama3Scaling(
            float(settings["factor"]),
            float(settings["low_freq_factor"]),
            float(settings["high_freq_factor"]),
            int(original),
        )
    raise ValueError(
        f"rotary scaling {kind!r} is not supported; known are default, linear and llama3"
    )


def _windows(raw: _Raw, kinds: list[str], window: int | None) -> tuple[int | None, ...]:
    known = {"sliding_attention": window, "full_attention": None}
    unknown = sorted(set(kinds) - set(known))
    if unknown:
        raise ValueError(f"layer types {unknown} are not supported, only {list(known)}")
    return tuple(known[kind] for kind in kinds)


def _modern(
    raw: _Raw, norm: Norm, *, head_dim: int | None = None, tied: bool = False
) -> dict[str, Any]:
    """The settings that Llama and all its descendants name alike."""
    heads = raw.size("num_attention_heads")
    dim = raw.first("head_dim", default=head_dim or raw.size("hidden_size") // heads)
    return {
        "vocab_size": raw.size("vocab_size"),
        "width": raw.size("hidden_size"),
        "num_layers": raw.size("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": raw.first("num_key_value_heads", default=heads),
        "head_dim": dim,
        "mlp_width": raw.size("intermediate_size"),
        "norm": norm,
        "activation": raw.activation("hidden_act", default="silu"),
        "tied": bool(raw.get("tie_word_embeddings", tied)),
        "attn_scale": dim**-0.5,
        "qkv_bias": bool(raw.get("attention_bias", False)),
        "attn_out_bias": bool(raw.get("attention_bias", False)),
        "context_length": raw.optional_size("max_position_embeddings"),
        "source": raw.text,
    }


def _with_ropes(
    fields: dict[str, Any], *ropes: Rope, of_layer: list[int] | None = None
) -> DecoderConfig:
    layers, length = fields["num_layers"], fields["context_length"]
    # With linear scaling the file states the length before it, with Llama 3's the one after.
    stretches = (r.scaling.factor if isinstance(r.scaling, LinearScaling) else 1 for r in ropes)
    if length is not None:
        fields = fields | {"context_length": int(length * min(stretches))}
    return DecoderConfig(**fields, ropes=ropes, rope_of_layer=tuple(of_layer or [0] * layers))


def _rms(raw: _Raw, default: float = 1e-6, offset: float = 0.0) -> Norm:
    return Norm(float(raw.get("rms_norm_eps", default)), offset=offset)


def _llama(raw: _Raw) -> DecoderConfig:
    fields = _modern(raw, _rms(raw)) | {"mlp_bias": bool(raw.get("mlp_bias", False))}
    return _with_ropes(fields, _rotary(raw, fields["head_dim"]))


def _mistral(raw: _Raw) -> DecoderConfig:
    fields = _modern(raw, _rms(raw)) | {"qkv_bias": False, "attn_out_bias": False}
    fields["windows"] = (raw.get("sliding_window", 4096),) * fields["num_layers"]
    return _with_ropes(fields, _rotary(raw, fields["head_dim"]))


def _qwen(raw: _Raw, *, qk_norm: bool) -> DecoderConfig:
    fields = _modern(raw, _rms(raw), head_dim=128 if qk_norm else None)
    if qk_norm:
        fields["qk_norm"] = _rms(raw)
    else:
        fields |= {"qkv_bias": True, "attn_out_bias": False}
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    first = raw.get("max_window_layers", 28)
    kinds = raw.get("layer_types", None) or [
        "full_attention" if window is None or layer < first else "sliding_attention"
        for layer in range(fields["num_layers"])
    ]
    fields["windows"] = _windows(raw, kinds, window)
    return _with_ropes(fields, _rotary(raw, fields["head_dim"]))


def _gemma_like(raw: _Raw) -> dict[str, Any]:
    fields = _modern(raw, _rms(raw, offset=1.0), head_dim=256, tied=True)
    name = raw.first("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    # The first releases say "gelu" and mean its tanh approximation.
    fields["activation"] = (
        ACTIVATIONS["gelu_pytorch_tanh"]
        if name == "gelu"
        else raw.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    )
    return fields | {"embed_scale": fields["width"] ** 0.5}


def _gemma(raw: _Raw) -> DecoderConfig:
    fields = _gemma_like(raw)
    return _with_ropes(fields, _rotary(raw, fields["head_dim"]))


def _later_gemma(raw: _Raw, final_cap: float | None, attn_cap: float | None) -> dict[str, Any]:
    return _gemma_like(raw) | {
        "norms": ("attn", "attn_post", "mlp", "mlp_post"),
        "attn_scale": float(raw.get("query_pre_attn_scalar", 256)) ** -0.5,
        "logit_softcap": raw.factor("final_logit_softcapping", final_cap),
        "attn_softcap": raw.factor("attn_logit_softcapping", attn_cap),
    }


def _gemma2(raw: _Raw) -> DecoderConfig:
    fields = _later_gemma(raw, 30.0, 50.0)
    kinds = raw.get("layer_types", None) or [
        "full_attention" if layer % 2 else "sliding_attention"
        for layer in range(fields["num_layers"])
    ]
    fields["windows"] = _windows(raw, kinds, raw.get("sliding_window", 4096))
    return _with_ropes(fields, _rotary(raw, fields["head_dim"]))


def _gemma3(raw: _Raw) -> DecoderConfig:
    fields = _later_gemma(raw, None, None)
    fields["qk_norm"] = _rms(raw, offset=1.0)
    every = raw.first("sliding_window_pattern", "_sliding_window_pattern", default=6)
    kinds = raw.get("layer_types", None) or [
        "sliding_attention" if (layer + 1) % every else "full_attention"
        for layer in range(fields["num_layers"])
    ]
    fields["windows"] = _windows(raw, kinds, raw.get("sliding_window", 4096))
    full = _rotary(raw, fields["head_dim"], theta=1e6, name="full_attention")
    if raw.get("rope_parameters", None):
        local = _rotary(raw, fields["head_dim"], name="sliding_attention")
    else:
        local = Rope(float(raw.get("rope_local_base_freq", 1e4)), fields["head_dim"])
    of_layer = [int(kind == "sliding_attention") for kind in kinds]
    return _with_ropes(fields, full, local, of_layer=of_layer)


def _olmo(raw: _Raw) -> DecoderConfig:
    fields = _modern(raw, Norm(1e-5, centered=True, scaled=False))
    fields["qkv_clip"] = raw.factor("clip_qkv", None)
    return _with_ropes(fields, _rotary(raw, fields["head_dim"]))


def _olmo2(raw: _Raw) -> DecoderConfig:
    fields = _modern(raw, _rms(raw, 1e-5)) | {
        "norms": ("attn_post", "mlp_post"),
        "qk_norm": _rms(raw, 1e-5),
        "qk_norm_across_heads": True,
    }
    return _with_ropes(fields, _rotary(raw, fields["head_dim"]))


def _layer_norm(raw: _Raw, key: str) -> Norm:
    return Norm(float(raw.get(key, 1e-5)), centered=True, biased=True)


def _gpt_neox(raw: _Raw) -> DecoderConfig:
    bias = bool(raw.get("attention_bias", True))
    fields = _modern(raw, _layer_norm(raw, "layer_norm_eps")) | {
        "activation": raw.activation("hidden_act", default="gelu"),
        "gated": False,
        "parallel": bool(raw.get("use_parallel_residual", True)),
        "qkv_bias": bias,
        "attn_out_bias": bias,
        "mlp_bias": True,
    }
    return _with_ropes(fields, _rotary(raw, fields["head_dim"], share=0.25))


def _phi(raw: _Raw) -> DecoderConfig:
    norm = _layer_norm(raw, "layer_norm_eps")
    fields = _modern(raw, norm) | {
        "activation": raw.activation("hidden_act", default="gelu_new"),
        "norms": ("attn",),
        "gated": False,
        "parallel": True,
        "qk_norm": norm if raw.get("qk_layernorm", False) else None,
        "qkv_bias": True,
        "attn_out_bias": True,
        "mlp_bias": True,
        "unembed_bias": True,
    }
    return _with_ropes(fields, _rotary(raw, fields["head_dim"], share=0.5))


def _phi3(raw: _Raw) -> DecoderConfig:
    fields = _modern(raw, _rms(raw, 1e-5)) | {"qkv_bias": False, "attn_out_bias": False}
    fields["windows"] = (raw.get("sliding_window", None),) * fields["num_layers"]
    return _with_ropes(fields, _rotary(raw, fields["head_dim"]))


def _gpt2_like(raw: _Raw) -> dict[str, Any]:
    heads, width = raw.size("n_head"), raw.size("n_embd")
    return {
        "vocab_size": raw.size("vocab_size"),
        "width": width,
        "num_layers": raw.size("n_layer"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "norm": _layer_norm(raw, "layer_norm_epsilon"),
        "tied": bool(raw.get("tie_word_embeddings", True)),
        "num_positions": raw.size("n_positions"),
        "attn_scale": (width // heads) ** -0.5 if raw.get("scale_attn_weights", True) else 1.0,
        "attn_scale_by_layer": bool(raw.get("scale_attn_by_inverse_layer_idx", False)),
        "qkv_bias": True,
        "attn_out_bias": True,
        "source": raw.text,
    }


def _gpt2(raw: _Raw) -> DecoderConfig:
    return DecoderConfig(
        **_gpt2_like(raw),
        mlp_width=raw.first("n_inner", default=4 * raw.size("n_embd")),
        activation=raw.activation("activation_function", default="gelu_new"),
        gated=False,
        mlp_bias=True,
    )


def _attention_only(raw: _Raw) -> DecoderConfig:
    """GPT-2 without its MLPs, at any depth; rotary if there are ``rope_parameters``."""
    fields = _gpt2_like(raw) | {"mlp_width": 0, "norms": ("attn",)}
    if not raw.get("rope_parameters", None):
        return DecoderConfig(**fields)
    length = fields.pop("num_positions")
    return _with_ropes(fields | {"context_length": length}, _rotary(raw, fields["head_dim"]))


FAMILIES: dict[str, Callable[[_Raw], DecoderConfig]] = {
    "attention_only": _attention_only,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "phi": _phi,
    "phi3": _phi3,
    "qwen2": partial(_qwen, qk_norm=False),
    "qwen3": partial(_qwen, qk_norm=True),
}
"""How to read each model type that is known."""
