"""x-transformers: a grid of its attention, norm, position, feed-forward and residual options, one case for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import Built, Case, NotBuildable
from prepare import pooled, prepare
from torch import Tensor, nn

WORDS, LENGTH, WIDTH = 97, 64, 32
BASE: dict[str, Any] = {"dim": WIDTH, "depth": 2, "heads": 4, "attn_dim_head": 8, "verbose": False}

# Options of AttentionLayers, tried in a causal Decoder.
DECODER: dict[str, dict[str, Any]] = {
    "plain": {},
    # positions
    "rotary": {"rotary_pos_emb": True},
    "rotary, some heads": {"rotary_pos_emb": True, "rotate_num_heads": 2},
    "rotary xpos": {"rotary_xpos": True},
    "rotary interpolated": {"rotary_pos_emb": True, "rotary_interpolation_factor": 2.0},
    "polar (PoPE)": {"polar_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "alibi, some heads": {"alibi_pos_bias": True, "alibi_num_heads": 2},
    "T5 relative bias": {"rel_pos_bias": True},
    "dynamic bias": {"dynamic_pos_bias": True},
    "dynamic bias, log distance, norm": {
        "dynamic_pos_bias": True, "dynamic_pos_bias_log_distance": True, "dynamic_pos_bias_norm": True
    },
    "data-dependent alibi": {"attn_data_dependent_alibi": True},
    "data-dependent alibi per row": {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True},
    "CoPE": {"attn_use_cope": True},
    "CoPE, talking heads": {"attn_use_cope": True, "attn_cope_talking_heads": True},
    # norms
    "rmsnorm": {"use_rmsnorm": True},
    "scalenorm": {"use_scalenorm": True},
    "simple rmsnorm": {"use_simple_rmsnorm": True},
    "dynamic tanh": {"use_dynamic_tanh": True},
    "derf": {"use_derf": True},
    "no unit offset": {"norm_add_unit_offset": False},
    "post-norm": {"pre_norm": False},
    "sandwich norm": {"sandwich_norm": True},
    "pre and post norm": {"pre_and_post_norm": True},
    "no final norm": {"pre_norm_has_final_norm": False},
    # query, key, value
    "qk norm": {"attn_qk_norm": True},
    "qk norm, groups": {"attn_qk_norm": True, "attn_qk_norm_groups": 2},
    "qk norm, dim scale": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "qk rmsnorm": {"attn_qk_rmsnorm": True},
    "k rmsnorm": {"attn_k_rmsnorm": True},
    "value rmsnorm": {"attn_value_rmsnorm": True},
    "one kv head": {"attn_one_kv_head": True},
    "grouped kv heads": {"attn_kv_heads": 2},
    "grouped kv heads, flash": {"attn_kv_heads": 2, "attn_flash": True},
    "wider values": {"attn_value_dim_head": 16},
    "latent q": {"attn_use_latent_q": True, "attn_dim_latent_q": 16},
    "latent kv": {"attn_use_latent_kv": True, "attn_dim_latent_kv": 16},
    "multi-latent attention": {
        "rotary_pos_emb": True, "rotary_emb_dim": 8, "attn_use_latent_q": True, "attn_dim_latent_q": 16,
        "attn_use_latent_kv": True, "attn_dim_latent_kv": 16, "attn_latent_rope_subheads": 1,
    },
    "memory kv": {"attn_num_mem_kv": 3},
    "zero kv": {"attn_add_zero_kv": True},
    # the attention itself
    "flash": {"attn_flash": True},
    "flash, rotary": {"attn_flash": True, "rotary_pos_emb": True},
    "flash, alibi": {"attn_flash": True, "alibi_pos_bias": True},
    "flash, qk norm": {"attn_flash": True, "attn_qk_norm": True},
    "flash, memory kv": {"attn_flash": True, "attn_num_mem_kv": 3},
    "talking heads before softmax": {"attn_pre_talking_heads": True},
    "talking heads after softmax": {"attn_post_talking_heads": True},
    "talking heads, both": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "talking heads, scaling": {"attn_pre_scale_post_talking_heads": True},
    "head scale": {"attn_head_scale": True},
    "sparse top-k": {"attn_sparse_topk": 8},
    "sparse top-k, straight through": {"attn_sparse_topk": 8, "attn_sparse_topk_straight_through": True},
    "hard attention": {"attn_hard": True},
    "l2 distance": {"attn_l2_distance": True},
    "sigmoid attention": {"attn_sigmoid": True},
    "selective attention": {"attn_selective": True},
    "cog attention": {"attn_cog_signed": True},
    "learned sink": {"attn_head_learned_sink": True},
    "softclamped logits": {"attn_softclamp_logits": True},
    "window": {"attn_max_attend_past": 8},
    "laser": {"attn_laser": True},
    "attention on attention": {"attn_on_attn": True},
    "ONNX-able": {"attn_onnxable": True},
    # gates and values
    "gated values": {"attn_gate_values": True},
    "gated values, low rank": {"attn_gate_values": True, "attn_gate_values_rank": 4},
    "gated values, headwise": {"attn_gate_values": True, "attn_gate_values_headwise": True},
    "swiglu values": {"attn_gate_values": True, "attn_swiglu_values": True},
    "gated value heads": {"attn_gate_value_heads": True},
    "output gate": {"attn_output_gate": True},
    "orthogonally projected values": {"attn_orthog_projected_values": True},
    "orthogonally projected values per head": {"attn_orthog_projected_values_per_head": True},
    # feed-forward
    "glu": {"ff_glu": True},
    "glu, bias factor": {"ff_glu": True, "ff_glu_mult_bias": True},
    "glu, softclamp": {"ff_glu": True, "ff_glu_softclamp": True},
    "swish": {"ff_swish": True},
    "swiglu": {"ff_swish": True, "ff_glu": True, "ff_no_bias": True},
    "relu squared": {"ff_relu_squared": True},
    "solu": {"ff_solu": True},
    "custom activation": {"ff_custom_activation": nn.Mish()},
    "norm after activation": {"ff_post_act_ln": True},
    "softclamped feed-forward": {"ff_softclamp_value": 5.0},
    "no bias": {"ff_no_bias": True},
    "macaron": {"macaron": True},
    "attention only": {"only_attn": True},
    # residuals and layers
    "residual attention": {"residual_attn": True},
    "gated residual (GRU)": {"gate_residual": True},
    "scaled residual": {"scale_residual": True, "scale_residual_constant": 1.2},
    "residual branch scaled": {"scale_residual": 0.5},
    "orthogonal residual": {"orthog_residual": True},
    "mean-variance split residual": {"mv_split_residual": True},
    "aggregated residuals": {"attn_aggregated_residuals": True, "attn_aggregated_residual_kwargs": {"lora_rank": 8}},
    "hyper connections": {"num_residual_streams": 2},
    "hyper connections, different views": {"num_residual_streams": 2, "qkv_receive_diff_residuals": True},
    "gated multi residual": {
        "num_residual_streams": 2, "gated_multi_residual": True, "residual_fn_kwargs": {"read_gate_rank": 8}
    },
    "integrated layers (LIMe)": {"integrate_layers": True},
    "value residual": {"add_value_residual": True},
    "value residual, fixed": {"add_value_residual": True, "learned_value_residual_mix": False},
    "layer scale": {"use_layerscale": True},
    "unet skips": {"unet_skips": True},
    "reinjected input": {"reinject_input": True},
    "reinjected input, gated": {"reinject_input": True, "learned_reinject_input_gate": True},
    "shifted tokens": {"shift_tokens": 1},
    "softclamped output": {"softclamp_output": True},
    "tied layers": {"weight_tie_layers": True},
    "sandwiched layers": {"sandwich_coef": 1},
    "PAR": {"par_ratio": 2, "depth": 4},
    "custom layers": {"custom_layers": ("a", "f", "f", "a"), "depth": None},
    "gumbel attention": {"attn_gumbel_softmax": True},
}  # fmt: skip

# Options of AttentionLayers that are for, or differ in, a bidirectional Encoder.
ENCODER: dict[str, dict[str, Any]] = {
    "plain": {},
    "alibi": {"alibi_pos_bias": True},
    "T5 relative bias": {"rel_pos_bias": True},
    "data-dependent alibi": {"attn_data_dependent_alibi": True},
    "relative projected bias": {"attn_use_rel_proj_pos_bias": True},
    "shifted tokens": {"shift_tokens": 1},
    "flash": {"attn_flash": True},
}

# Options of TransformerWrapper around a plain Decoder; outputs that are not (B, S, words) come with a target.
WRAPPER: dict[str, tuple[dict[str, Any], Callable[[Any], Tensor] | None]] = {
    "memory tokens": ({"num_memory_tokens": 4}, None),
    "memory tokens interspersed": ({"num_memory_tokens": 2, "memory_tokens_interspersed_every": 16}, None),
    "tied embedding": ({"tie_embedding": True}, None),
    "l2-normed embedding": ({"l2norm_embed": True}, None),
    "norm after embedding": ({"post_emb_norm": True}, None),
    "factorised embedding": ({"emb_dim": 16}, None),
    "sinusoidal positions": ({"scaled_sinu_pos_emb": True}, None),
    "no positions": ({"use_abs_pos_emb": False}, None),
    "embedding's gradient shrunk": ({"emb_frac_gradient": 0.1}, None),
    "mixture of softmax": ({"mixture_of_softmax": True}, None),
    "sigsoftmax": ({"sigsoftmax_logits": True}, None),
    "deep embedding": ({"ff_deep_embed": True}, None),
    "recycling": ({"recycling": True}, None),
    "two heads": ({"num_output_heads": 2}, lambda output: output[0][:, -1, 1]),
    "average pool": ({"average_pool_embed": True, "logits_dim": 10}, None),
    "class token": ({"use_cls_token": True, "logits_dim": 10}, None),
    "attention pool": ({"attn_pool": True, "logits_dim": 10}, lambda output: output.flatten(1)[:, 1]),
}


def _ids(length: int = LENGTH) -> Tensor:
    return torch.randint(1, WORDS, (2, length))


def _stack(kind: str, **options: Any) -> nn.Module:
    import x_transformers

    return getattr(x_transformers, kind)(**{**BASE, **options})


def _language_model(kind: str, options: dict[str, Any]) -> Built:
    from x_transformers import TransformerWrapper

    torch.manual_seed(0)
    return prepare(
        TransformerWrapper(num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=_stack(kind, **options)), _ids()
    )


def _wrapper(options: dict[str, Any], target: Callable[[Any], Tensor] | None) -> Built:
    from x_transformers import TransformerWrapper

    torch.manual_seed(0)
    kind = "Encoder" if "use_cls_token" in options else "Decoder"  # a class token comes first: causally it sees nothing
    model = TransformerWrapper(num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=_stack(kind), **options)
    # without recycle_steps, the number of steps is random
    return prepare(model, _ids(), inputs={"recycle_steps": 2} if "recycling" in options else {}, target=target)


def _masked() -> Built:
    """An encoder whose second sample is padded."""
    from x_transformers import TransformerWrapper

    torch.manual_seed(0)
    model = TransformerWrapper(num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=_stack("Encoder"))
    mask = torch.arange(LENGTH)[None] < torch.tensor([[LENGTH], [40]])
    return prepare(model, _ids(), inputs={"mask": mask}, target=lambda output: output[:, 0].amax(-1))


def _conditioned(options: dict[str, Any]) -> Built:
    """Norms and layer scales that take a condition."""
    from x_transformers import TransformerWrapper

    torch.manual_seed(0)
    stack = _stack("Decoder", dim_condition=16, **options)
    model = TransformerWrapper(num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=stack)
    return prepare(model, _ids(), inputs={"condition": torch.randn(2, 16)})


def _looped() -> Built:
    from x_transformers import TransformerWrapper

    torch.manual_seed(0)
    stack = _stack("Decoder", pre_and_post_norm=True)
    model = TransformerWrapper(num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=stack, looped=True)
    return prepare(model, _ids(), inputs={"looped_steps": 2}, target=_last_first)


def _last_first(output: Any) -> Tensor:
    """The last position's logit of word 1, from the first tensor of the output."""
    logits = output[0] if isinstance(output, tuple | list) else output
    return logits.flatten(0, -4)[:, -1, 1] if logits.dim() > 3 else logits[:, -1, 1]


def _prefix() -> Built:
    from x_transformers import TransformerWrapper

    torch.manual_seed(0)
    model = TransformerWrapper(num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=_stack("PrefixDecoder"))
    return prepare(model, _ids(), inputs={"prefix_attn_len": 16})


def _embedded_types() -> Built:
    from x_transformers import TransformerWrapper

    torch.manual_seed(0)
    model = TransformerWrapper(
        num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=_stack("Encoder"), embed_num_tokens={"type": 3}
    )
    return prepare(model, _ids(), inputs={"embed_ids": {"type": torch.randint(3, (2, LENGTH))}})


def _cross_attention(kind: str, options: dict[str, Any]) -> Built:
    """A decoder over text that also looks at a context of vectors."""
    from x_transformers import TransformerWrapper

    torch.manual_seed(0)
    options = {"cross_attend": True, **options} if kind == "Decoder" else options
    model = TransformerWrapper(num_tokens=WORDS, max_seq_len=LENGTH, attn_layers=_stack(kind, **options))
    return prepare(model, _ids(), inputs={"context": torch.randn(2, 20, WIDTH)})


def _encoder_decoder(options: dict[str, Any]) -> Built:
    """XTransformer's own forward gives the loss; its two halves in a row give logits."""
    from x_transformers import XTransformer

    class Halves(nn.Module):
        """Encoder, then the decoder inside its autoregressive wrapper."""

        def __init__(self, pair: nn.Module) -> None:
            super().__init__()
            self.encoder, self.decoder = pair.encoder, pair.decoder.net

        def forward(self, source: Tensor, words: Tensor) -> Tensor:
            return self.decoder(words, context=self.encoder(source, return_embeddings=True))

    torch.manual_seed(0)
    sizes = {f"{side}_{key}": value for side in ("enc", "dec") for key, value in BASE.items() if key != "dim"}
    sizes |= {f"{side}_num_tokens": WORDS for side in ("enc", "dec")}
    sizes |= {f"{side}_max_seq_len": LENGTH for side in ("enc", "dec")}
    return prepare(Halves(XTransformer(dim=WIDTH, **sizes, **options)), _ids(), _ids(20))


def _continuous(kind: str, options: dict[str, Any]) -> Built:
    from x_transformers import ContinuousTransformerWrapper

    torch.manual_seed(0)
    model = ContinuousTransformerWrapper(dim_in=6, dim_out=10, max_seq_len=LENGTH, attn_layers=_stack(kind), **options)
    # Probabilistic: mean and log variance, stacked in front of the batch.
    target = (lambda output: output[0][:, -1, 1]) if "probabilistic" in options else None
    return prepare(model, torch.randn(2, LENGTH, 6), target=target)


def _picture(options: dict[str, Any]) -> Built:
    from x_transformers import ViTransformerWrapper

    torch.manual_seed(0)
    model = ViTransformerWrapper(image_size=32, patch_size=4, num_classes=10, attn_layers=_stack("Encoder"), **options)
    return prepare(model, torch.randn(2, 3, 32, 32))


def _multi_input() -> Built:
    from x_transformers import MultiInputTransformerWrapper

    torch.manual_seed(0)
    model = MultiInputTransformerWrapper(
        num_tokens={"note": WORDS, "pitch": 12}, max_seq_len=LENGTH, attn_layers=_stack("Decoder")
    )
    notes = {"note": _ids(), "pitch": torch.randint(12, (2, LENGTH))}
    return prepare(model, notes, target=lambda output: output["note"][:, -1, 1])


def _xval() -> Built:
    from x_transformers import XValTransformerWrapper

    torch.manual_seed(0)
    model = XValTransformerWrapper(
        num_tokens=WORDS, numerical_token_id=3, max_seq_len=LENGTH, attn_layers=_stack("Decoder")
    )
    return prepare(model, _ids(), torch.randn(2, LENGTH), target=lambda output: output[0][:, -1, 1])


def _attention_pool() -> Built:
    from x_transformers import AttentionPool

    torch.manual_seed(0)
    model = AttentionPool(WIDTH, num_pooled_tokens=2, heads=4, dim_head=8)
    return prepare(model, torch.randn(2, 20, WIDTH), target=pooled)


def _soft_cope() -> Built:
    raise NotBuildable("the package's own einx expression subtracts 'i, j' from a tensor of four axes (2.31.10)")


def cases() -> list[Case]:
    """All of them; the package is imported when one is built."""
    listed: list[Case] = []

    def add(name: str, build: Callable[..., Built], *args: Any) -> None:
        listed.append(Case("pypi", "x-transformers", name, lambda: build(*args)))

    for name, options in DECODER.items():
        add(f"Decoder: {name}", _language_model, "Decoder", options)
    add("Decoder: CoPE, soft one-hot", _soft_cope)
    for name, options in ENCODER.items():
        add(f"Encoder: {name}", _language_model, "Encoder", options)
    add("Encoder: padding mask", _masked)
    for name, (options, target) in WRAPPER.items():
        add(f"TransformerWrapper: {name}", _wrapper, options, target)
    for name, options in {
        "adaptive layernorm": {"use_adaptive_layernorm": True},
        "adaptive rmsnorm": {"use_adaptive_rmsnorm": True},
        "adaptive layernorm and layer scale (DiT)": {"use_adaptive_layernorm": True, "use_adaptive_layerscale": True},
        "adaptive layernorm with an MLP": {"use_adaptive_layernorm": True, "adaptive_condition_mlp": True},
    }.items():
        add(f"Decoder: {name}", _conditioned, options)
    add("TransformerWrapper: looped", _looped)
    add("TransformerWrapper: type embedding", _embedded_types)
    add("PrefixDecoder", _prefix)
    add("Decoder: cross attention", _cross_attention, "Decoder", {})
    add("Decoder: cross attention, residual", _cross_attention, "Decoder", {"cross_residual_attn": True})
    add("Decoder: cross attention, flash", _cross_attention, "Decoder", {"attn_flash": True})
    add("CrossAttender", _cross_attention, "CrossAttender", {})
    add("CrossAttender: inverted attention", _cross_attention, "CrossAttender", {"cross_attn_inverted_attention": True})
    add("XTransformer", _encoder_decoder, {})
    add("XTransformer: tied embedding", _encoder_decoder, {"tie_token_emb": True})
    add("ContinuousTransformerWrapper: Encoder", _continuous, "Encoder", {})
    add("ContinuousTransformerWrapper: Decoder", _continuous, "Decoder", {"num_memory_tokens": 2})
    add("ContinuousTransformerWrapper: pooled", _continuous, "Encoder", {"average_pool_embed": True})
    add("ContinuousTransformerWrapper: probabilistic", _continuous, "Decoder", {"probabilistic": True})
    add("ViTransformerWrapper", _picture, {})
    add("ViTransformerWrapper: register tokens", _picture, {"num_register_tokens": 2, "post_emb_norm": True})
    add("MultiInputTransformerWrapper", _multi_input)
    add("XValTransformerWrapper", _xval)
    add("AttentionPool", _attention_pool)
    return listed
