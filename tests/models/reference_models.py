"""The models that the fixtures hold: per family two configurations, none of them the default."""

from typing import Any, NamedTuple

SMALL = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 53}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
TINY_IDS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {**SMALL, **HEADS, **TINY_IDS}
GPT2_LIKE = {
    "n_embd": 32, "n_head": 4, "n_positions": 40, "vocab_size": 53,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3_SCALING = {
    "rope_type": "llama3", "rope_theta": 900.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]


class Entry(NamedTuple):
    """One reference model: its folder, the transformers class of its config and the options."""

    name: str
    config_class: str
    options: dict[str, Any]
    attention_only: bool = False
    max_shard_size: str | None = None


def rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_type": "default", **more}


def gpt2() -> list[Entry]:
    base = GPT2_LIKE | {"n_layer": 2}
    only = GPT2_LIKE | {"n_inner": 4}
    return [
        Entry("gpt2", "GPT2Config", base | {"n_inner": 40, "layer_norm_epsilon": 1e-3}),
        Entry("gpt2_inverse_layer", "GPT2Config", base | {
            "n_inner": 24, "layer_norm_epsilon": 1e-2, "activation_function": "relu",
            "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False}),
        Entry("attention_only", "GPT2Config",
              only | {"n_layer": 2, "layer_norm_epsilon": 1e-3}, attention_only=True),
        Entry("attention_only_untied", "GPT2Config", only | {
            "n_layer": 3, "layer_norm_epsilon": 2e-2, "tie_word_embeddings": False},
            attention_only=True),
    ]  # fmt: skip


def gpt_neox() -> list[Entry]:
    base = SMALL | TINY_IDS | {"num_attention_heads": 4, "max_position_embeddings": 64}
    return [
        Entry("gpt_neox", "GPTNeoXConfig", base | {
            "rope_parameters": rope(500.0, partial_rotary_factor=0.25), "layer_norm_eps": 1e-3}),
        Entry("gpt_neox_sequential", "GPTNeoXConfig", base | {
            "rope_parameters": rope(77.0, partial_rotary_factor=0.5), "layer_norm_eps": 1e-2,
            "use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new",
            "tie_word_embeddings": True}),
    ]  # fmt: skip


def llama() -> list[Entry]:
    return [
        Entry("llama", "LlamaConfig", LLAMA_LIKE | {
            "head_dim": 12, "rope_parameters": rope(500.0), "rms_norm_eps": 1e-3},
            max_shard_size="15KB"),
        Entry("llama_bias_tied", "LlamaConfig", LLAMA_LIKE | {
            "rope_parameters": rope(90.0), "rms_norm_eps": 1e-2, "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": True}),
        Entry("llama3_scaled", "LlamaConfig", LLAMA_LIKE | {
            "num_key_value_heads": 1, "rope_parameters": LLAMA3_SCALING, "rms_norm_eps": 1e-4}),
        Entry("mistral", "MistralConfig", LLAMA_LIKE | {
            "head_dim": 12, "sliding_window": 6, "rope_parameters": rope(300.0),
            "rms_norm_eps": 1e-3}),
        Entry("mistral_full", "MistralConfig", LLAMA_LIKE | {
            "sliding_window": None, "rope_parameters": rope(40.0), "rms_norm_eps": 1e-2,
            "head_dim": 8, "tie_word_embeddings": True}),
    ]  # fmt: skip


def qwen() -> list[Entry]:
    windows = {"use_sliding_window": True, "max_window_layers": 1, "tie_word_embeddings": True}
    return [
        Entry("qwen2", "Qwen2Config", LLAMA_LIKE | {
            "rope_parameters": rope(700.0), "rms_norm_eps": 1e-3}),
        Entry("qwen2_windows", "Qwen2Config", LLAMA_LIKE | windows | {
            "sliding_window": 7, "rope_parameters": rope(60.0), "rms_norm_eps": 1e-2}),
        Entry("qwen3", "Qwen3Config", LLAMA_LIKE | {
            "head_dim": 12, "rope_parameters": rope(700.0), "rms_norm_eps": 1e-3}),
        Entry("qwen3_bias_windows", "Qwen3Config", LLAMA_LIKE | windows | {
            "head_dim": 6, "sliding_window": 5, "attention_bias": True,
            "rope_parameters": rope(60.0), "rms_norm_eps": 1e-2}),
    ]  # fmt: skip


def gemma() -> list[Entry]:
    base = LLAMA_LIKE | {"pad_token_id": 0}
    two_tables = {
        "sliding_attention": rope(50.0),
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0},
    }
    return [
        Entry("gemma", "GemmaConfig", base | {
            "head_dim": 12, "num_key_value_heads": 1, "rope_parameters": rope(700.0),
            "rms_norm_eps": 1e-3}),
        Entry("gemma_bias_untied", "GemmaConfig", base | {
            "head_dim": 6, "attention_bias": True, "tie_word_embeddings": False,
            "rope_parameters": rope(60.0), "rms_norm_eps": 1e-2}),
        Entry("gemma2", "Gemma2Config", base | {
            "head_dim": 12, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5, "sliding_window": 6, "layer_types": MIXED,
            "rope_parameters": rope(700.0), "rms_norm_eps": 1e-3}),
        Entry("gemma2_uncapped", "Gemma2Config", base | {
            "head_dim": 6, "query_pre_attn_scalar": 20, "attn_logit_softcapping": None,
            "final_logit_softcapping": None, "sliding_window": 4, "attention_bias": True,
            "layer_types": MIXED[::-1], "rope_parameters": rope(60.0), "rms_norm_eps": 1e-2}),
        Entry("gemma3", "Gemma3TextConfig", base | {
            "head_dim": 12, "query_pre_attn_scalar": 5, "sliding_window": 6, "layer_types": MIXED,
            "rope_parameters": {"sliding_attention": rope(50.0), "full_attention": rope(900.0)},
            "rms_norm_eps": 1e-3}),
        Entry("gemma3_scaled", "Gemma3TextConfig", base | {
            "head_dim": 6, "query_pre_attn_scalar": 20, "sliding_window": 4, "layer_types": MIXED,
            "rope_parameters": two_tables, "final_logit_softcapping": 1.5, "attention_bias": True,
            "rms_norm_eps": 1e-2}),
    ]  # fmt: skip


def olmo() -> list[Entry]:
    base = LLAMA_LIKE | {"pad_token_id": 1}
    return [
        Entry("olmo", "OlmoConfig", base | {"rope_parameters": rope(700.0)}),
        Entry("olmo_clipped_tied", "OlmoConfig", base | {
            "clip_qkv": 0.5, "attention_bias": True, "tie_word_embeddings": True,
            "rope_parameters": rope(60.0)}),
        Entry("olmo2", "Olmo2Config", base | {
            "rope_parameters": rope(700.0), "rms_norm_eps": 1e-3}),
        Entry("olmo2_bias_tied", "Olmo2Config", base | {
            "rope_parameters": rope(60.0), "rms_norm_eps": 1e-2, "attention_bias": True,
            "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ]  # fmt: skip


def phi() -> list[Entry]:
    return [
        Entry("phi", "PhiConfig", LLAMA_LIKE | {
            "num_key_value_heads": 4, "layer_norm_eps": 1e-3,
            "rope_parameters": rope(700.0, partial_rotary_factor=0.5)}),
        Entry("phi_qk_norm", "PhiConfig", LLAMA_LIKE | {
            "qk_layernorm": True, "layer_norm_eps": 1e-2, "hidden_act": "gelu",
            "rope_parameters": rope(60.0, partial_rotary_factor=0.25)}),
        Entry("phi3", "Phi3Config", LLAMA_LIKE | {
            "sliding_window": 6, "rope_parameters": rope(700.0), "rms_norm_eps": 1e-3}),
        Entry("phi3_partial_tied", "Phi3Config", LLAMA_LIKE | {
            "rope_parameters": rope(60.0, partial_rotary_factor=0.5), "rms_norm_eps": 1e-2,
            "num_key_value_heads": 1, "tie_word_embeddings": True}),
    ]  # fmt: skip


MODELS = [*gpt2(), *gpt_neox(), *llama(), *qwen(), *gemma(), *olmo(), *phi()]
