"""One decoder for many architectures: a pure function of stacked weights and a layer index.

The layers' weights are stacked along a leading axis and picked by a traced index inside the
recomputed part of the loop: one layer is compiled however many there are, one layer's weights and
one residual stream per layer are what the backward pass keeps.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from slt_jax._types import Displacement
from slt_jax.minibatch import Losses
from slt_jax.models import fast_path
from slt_jax.models.attention import AbstractAttention, BlockwiseAttention
from slt_jax.models.config import DecoderConfig, floating_dtype
from slt_jax.models.cross_entropy import token_losses
from slt_jax.models.head_path import HeadStreams
from slt_jax.models.layout import entry, parameter_axes
from slt_jax.models.norm import Norm
from slt_jax.models.rope import rotate, rotation_angles
from slt_jax.models.tokens import (
    Sequences,
    check_batch,
    check_token_ids,
    predicted,
    token_arrays,
)
from slt_jax.restriction import Restriction


class Decoder(eqx.Module):
    """The loss function of a decoder: ``decoder(params, batch)`` in float32 nats per token.

    A pytree without leaves: as a loss it is code, and two equal ones share compiled programs.

    Args:
        config: the architecture.
        compute_dtype: dtype of the activations. A weight that is wider than that, such as one that
            the sampler has displaced in float32, is multiplied in its own dtype and never rounded.
        attention: how attention is computed: ``BlockwiseAttention`` anywhere, or a fused kernel,
            ``SplashAttention`` on TPU and ``CudnnAttention`` on NVIDIA GPUs.

    Raises:
        ValueError: an architecture or a dtype that this attention cannot compute.
        TypeError: an attention that is none.
    """

    config: DecoderConfig = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    attention: AbstractAttention = eqx.field(static=True)

    def __init__(
        self,
        config: DecoderConfig,
        compute_dtype: jax.typing.DTypeLike = jnp.float32,
        attention: AbstractAttention = BlockwiseAttention(),
    ):
        self.config = config
        self.compute_dtype = floating_dtype("compute_dtype", compute_dtype)
        if not isinstance(attention, AbstractAttention):
            raise TypeError(
                "attention must be an object such as BlockwiseAttention(), SplashAttention() or "
                f"CudnnAttention(), got {attention!r}"
            )
        self.attention = attention
        attention.check(config, self.compute_dtype)

    @property
    def provenance(self) -> dict[str, str]:
        """What the numbers depend on beside weights and data, for the metadata of a run."""
        return {"compute_dtype": str(self.compute_dtype), "attention": repr(self.attention)}

    def __call__(
        self, params: Mapping[str, Array], batch: Mapping[str, Array] | Int[Array, "batch pos"]
    ) -> Float32[Array, "batch targets"] | Losses:
        """Give −log p of every token given those before it, in nats.

        Args:
            params: arrays named and shaped as ``parameter_shapes(config)``, any floating dtype.
            batch: integer token ids ``[batch, pos]``, or a mapping with ``input_ids`` and, of the
                same shape if given, ``labels`` (not shifted; −100 where nothing is predicted) and
                ``attention_mask`` (0 at padding, which is neither seen nor predicted).

        Returns:
            float32 ``[batch, pos − 1]``, or ``Losses`` with weights 0 or 1 if labels or a mask are
            given. Compiled, a token id outside the vocabulary gives NaN in its sequence.

        Raises:
            TypeError: token ids that are no integers ``[batch, pos]``.
            ValueError: unknown entries of the batch, sequences longer than the model was made for,
                and, when not being compiled, token ids outside the vocabulary.
        """
        ids, _, mask = token_arrays(batch)
        return self.losses_from(params, self.hidden(params, ids, mask), batch)

    def check_examples(self, examples: Any) -> None:
        """Refuse values that the model cannot read, such as ids of another tokenizer."""
        check_batch(examples, self.config)

    def losses_prefix(
        self, params: Mapping[str, Array], restriction: Restriction, examples: Any
    ) -> Float[Array, "batch pos d"] | HeadStreams | None:
        """Give the part of the losses that no displacement changes, or None if there is none.

        That is the residual stream that enters the one layer that moves; if one head moves, also
        the one that leaves its attention at w*.

        Args:
            params: w*.
            restriction: the weights that move.
            examples: a batch, as for the decoder itself.
        """
        return fast_path.prefix(self, params, restriction, examples, every_head=False)

    def losses_prefix_in_full(
        self, params: Mapping[str, Array], restriction: Restriction, examples: Any
    ) -> Float[Array, "batch pos d"] | HeadStreams | None:
        """Give the same for examples of which the losses are taken at many displacements.

        If one head moves, it holds also what each head of its layer adds at w*.
        """
        return fast_path.prefix(self, params, restriction, examples, every_head=True)

    def losses_at(
        self,
        params: Mapping[str, Array],
        restriction: Restriction,
        displacement: Displacement,
        examples: Any,
        prefix: Float[Array, "batch pos d"] | HeadStreams | None = None,
    ) -> Float32[Array, "batch targets"] | Losses:
        """Give ``decoder(restriction.insert(params, displacement), examples)`` for less work.

        The numbers are the same up to rounding. Where one layer moves, what lies below it does not
        depend on the displacement and has no batch axis under ``jax.vmap`` over displacements; the
        backward pass, of the displacement alone, ends at that layer; where one head of it moves,
        the others are not computed either. Where anything else moves, the whole model is computed.

        Args:
            params: w*.
            restriction: the weights that move.
            displacement: float32, one array per block, in weight units.
            examples: a batch, as for the decoder itself.
            prefix: what ``losses_prefix`` gave for these weights, this layer and these examples;
                None computes it.
        """
        prefix = self.losses_prefix(params, restriction, examples) if prefix is None else prefix
        layer = fast_path.moving_layer(self.config, restriction)
        if prefix is None or layer is None:
            return self(restriction.insert(params, displacement), examples)
        if restriction.blocks[0].path in fast_path.ABOVE_LAYERS:
            above = {name: params[name] for name in fast_path.ABOVE_LAYERS if name in params}
            moved = {**params, **restriction.insert(above, displacement)}
            assert not isinstance(prefix, HeadStreams)
            return self.losses_from(moved, prefix, examples)
        ids, _, mask = token_arrays(examples)
        hidden = fast_path.through(
            self, params, restriction, displacement, layer, prefix, self.sequences(ids, mask)
        )
        return self.losses_from(params, hidden, examples)

    def losses_from(
        self, params: Mapping[str, Array], hidden: Array, batch: Any
    ) -> Float32[Array, "batch targets"] | Losses:
        """Give the losses from the residual stream after the last layer."""
        targets, weights = predicted(batch)
        losses = token_losses(
            lambda block: self.unembed(params, block),
            hidden[:, :-1],
            targets,
            self.config.vocab_size,
        )
        return losses if weights is None else Losses(losses, weights)

    def logits(
        self,
        params: Mapping[str, Array],
        ids: Int[Array, "batch pos"],
        mask: Array | None = None,
    ) -> Float32[Array, "batch pos vocab"]:
        """Give the float32 logits at every position, all at once."""
        return self.unembed(params, self.hidden(params, ids, mask))

    def hidden(
        self,
        params: Mapping[str, Array],
        ids: Int[Array, "batch pos"],
        mask: Array | None = None,
    ) -> Float[Array, "batch pos d"]:
        """Give the residual stream after the last layer, before the final normalisation."""
        sequences = self.sequences(ids, mask)

        def step(x: Array, layer: Array) -> tuple[Array, None]:
            return self.block(self.layer_weights(params, layer), layer, x, sequences), None

        layers = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        # The loop is a scan: nothing in it can be merged with what surrounds the recomputation.
        body = jax.checkpoint(step, prevent_cse=False)
        return jax.lax.scan(body, self.embed(params, ids), layers)[0]

    def sequences(self, ids: Int[Array, "batch pos"], mask: Array | None = None) -> Sequences:
        """Give what all layers share: rotary angles and where padding is."""
        ropes = self.config.ropes
        angles = rotation_angles(ropes, ids.shape[1]) if ropes else None
        return Sequences(angles, None if mask is None else mask != 0)

    def embed(
        self, params: Mapping[str, Array], ids: Int[Array, "batch pos"]
    ) -> Float[Array, "batch pos d"]:
        """Give the residual stream before the first layer; NaN where an id is no token."""
        check_token_ids(ids, self.config)
        # An unsigned index: a negative id is out of range instead of counted from the end.
        rows = params["embed.tok"].at[ids.astype(jnp.uint32)].get(mode="fill", fill_value=jnp.nan)
        x = rows.astype(self._wide(rows))
        if self.config.embed_scale != 1.0:
            scale = jnp.asarray(self.config.embed_scale, self.compute_dtype)
            x = x * scale.astype(x.dtype)
        if self.config.num_positions is not None:
            positions = params["embed.pos"][: ids.shape[1]]
            wide = jnp.float32 if x.dtype != positions.dtype else x.dtype
            x = x.astype(wide) + positions.astype(wide)
        return x.astype(self.compute_dtype)

    def layer_weights(self, params: Mapping[str, Array], layer: Array | int) -> dict[str, Array]:
        """Pick one layer's weights out of the stacks, by an index from 0 that may be traced."""
        return {
            name: entry(params[name], layer)
            for name, axes in parameter_axes(self.config).items()
            if axes.startswith("l")
        }

    def block(
        self,
        weights: Mapping[str, Array],
        layer: Array | int,
        x: Float[Array, "batch pos d"],
        sequences: Sequences,
    ) -> Float[Array, "batch pos d"]:
        """Apply one layer to the residual stream.

        Args:
            weights: the layer's weights, as ``layer_weights`` gives them.
            layer: its index from 0, which may be traced.
            x: residual stream in the compute dtype.
            sequences: what ``sequences`` gave.
        """
        attended = self.attended(weights, layer, x, sequences)
        if self.config.mlp_width and self.config.parallel:
            site = "mlp" if "mlp" in self.config.norms else "attn"
            return x + attended + self._mlp(weights, self._norm_at(site, weights, x))
        return self.with_mlp(weights, x + attended)

    def attended(
        self,
        weights: Mapping[str, Array],
        layer: Array | int,
        x: Float[Array, "batch pos d"],
        sequences: Sequences,
    ) -> Float[Array, "batch pos d"]:
        """Give what attention adds to the residual stream, from the arguments of ``block``."""
        entering = self._norm_at("attn", weights, x)
        return self._norm_at(
            "attn_post", weights, self._attend(weights, layer, entering, sequences)
        )

    def with_mlp(
        self, weights: Mapping[str, Array], x: Float[Array, "batch pos d"]
    ) -> Float[Array, "batch pos d"]:
        """Give the residual stream after an MLP that reads it, if the model has any."""
        if not self.config.mlp_width:
            return x
        added = self._mlp(weights, self._norm_at("mlp", weights, x))
        return x + self._norm_at("mlp_post", weights, added)

    def unembed(
        self, params: Mapping[str, Array], x: Float[Array, "batch pos d"]
    ) -> Float32[Array, "batch pos vocab"]:
        """Give float32 logits from the residual stream after the last layer."""
        x = self.config.norm(x, params.get("final_norm"), params.get("final_norm_b"))
        matrix = params["embed.tok" if self.config.tied else "unembed"]
        logits = self._contract("btd,vd->btv", x, matrix, jnp.float32)
        if self.config.unembed_bias:
            logits = logits + params["unembed_b"].astype(jnp.float32)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def attention_pattern(
        self, weights: Mapping[str, Array], layer: Array | int, x: Array, sequences: Sequences
    ) -> Float[Array, "batch query head key"]:
        """Give what one layer's heads attend to, from the arguments of ``block``; held whole."""
        q, k, _ = self._queries_keys_values(
            weights, layer, self._norm_at("attn", weights, x), sequences
        )
        # Mixing the unit vectors of the positions gives the weights that they are mixed with.
        positions = jnp.eye(x.shape[1], dtype=jnp.float32)[None, :, None, :]
        values = jnp.broadcast_to(positions, (*k.shape[:3], x.shape[1]))
        return self._mix(BlockwiseAttention(), q, k, values, layer, sequences)

    def _attend(
        self, weights: Mapping[str, Array], layer: Array | int, x: Array, sequences: Sequences
    ) -> Array:
        q, k, v = self._queries_keys_values(weights, layer, x, sequences)
        mixed = self._mix(self.attention, q, k, v, layer, sequences)
        out = self._contract("bthk,hkd->btd", mixed, weights["attn.o"])
        return self._plus(out, weights.get("attn.o_b"))

    def _queries_keys_values(
        self, weights: Mapping[str, Array], layer: Array | int, x: Array, sequences: Sequences
    ) -> tuple[Array, Array, Array]:
        config = self.config
        q, k, v = (self._project(weights, name, x) for name in ("q", "k", "v"))
        if config.qk_norm is not None:
            q = self._qk_norm(config.qk_norm, weights, "attn.q_norm", q)
            k = self._qk_norm(config.qk_norm, weights, "attn.k_norm", k)
        if sequences.angles is not None:
            table = jnp.asarray(config.rope_of_layer, jnp.int32)[layer]
            angles = entry(sequences.angles, table)
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v

    def _mix(
        self,
        attention: AbstractAttention,
        q: Array,
        k: Array,
        v: Array,
        layer: Array | int,
        sequences: Sequences,
    ) -> Array:
        scale: Any = self.config.attn_scale
        if self.config.attn_scale_by_layer:
            scale = scale / (jnp.asarray(layer) + 1).astype(jnp.float32)
        return attention(
            q,
            k,
            v,
            scale=scale,
            windows=self.config.windows,
            layer=layer,
            softcap=self.config.attn_softcap,
            is_key=sequences.is_key,
        )

    def _project(self, weights: Mapping[str, Array], name: str, x: Array) -> Array:
        out = self._contract("btd,dhk->bthk", x, weights[f"attn.{name}"])
        out = self._plus(out, weights.get(f"attn.{name}_b"))
        clip = self.config.qkv_clip
        return out if clip is None else jnp.clip(out, -clip, clip)

    def _qk_norm(self, norm: Norm, weights: Mapping[str, Array], name: str, x: Array) -> Array:
        return norm(x, weights[name], weights.get(f"{name}_b"))

    def _mlp(self, weights: Mapping[str, Array], x: Array) -> Array:
        up = self._plus(
            self._contract("btd,df->btf", x, weights["mlp.up"]), weights.get("mlp.up_b")
        )
        if self.config.gated:
            gate = self._contract("btd,df->btf", x, weights["mlp.gate"])
            inner = self.config.activation(self._plus(gate, weights.get("mlp.gate_b"))) * up
        else:
            inner = self.config.activation(up)
        down = self._contract("btf,fd->btd", inner, weights["mlp.down"])
        return self._plus(down, weights.get("mlp.down_b"))

    def _norm_at(self, site: str, weights: Mapping[str, Array], x: Array) -> Array:
        if site not in self.config.norms:
            return x
        return self.config.norm(x, weights.get(f"norm.{site}"), weights.get(f"norm.{site}_b"))

    def _wide(self, weight: Array) -> Any:
        """The compute dtype or the weight's, whichever holds more."""
        bits = jnp.finfo(weight.dtype).bits
        return weight.dtype if bits > jnp.finfo(self.compute_dtype).bits else self.compute_dtype

    def _contract(self, equation: str, x: Array, weight: Array, out_dtype: Any = None) -> Array:
        """Multiply in the wider of the compute dtype and the weight's own."""
        dtype = self._wide(weight)
        # Accelerators round float32 operands by default, which would lose small displacements.
        precision = None if dtype == self.compute_dtype else jax.lax.Precision.HIGHEST
        out = jnp.einsum(
            equation,
            x.astype(dtype),
            weight.astype(dtype),
            precision=precision,
            preferred_element_type=out_dtype,
        )
        return out if out_dtype is not None else out.astype(self.compute_dtype)

    def _plus(self, x: Array, bias: Array | None) -> Array:
        if bias is None:
            return x
        dtype = self._wide(bias)
        return (x.astype(dtype) + bias.astype(dtype)).astype(self.compute_dtype)
