"""Tiny configurations: shrinks a transformers configuration by the names of its fields."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from transformers import PreTrainedConfig

HIDDEN, HEADS, HEAD_DIM, LAYERS, INTERMEDIATE, VOCAB = 32, 4, 8, 2, 48, 128
IMAGE, PATCH = 32, 8
#: Random text ids lie in this range: above the special tokens, below the placeholders of images and sounds.
TEXT_IDS = (20, 90)

# Name of an integer field -> its largest value; the first match counts, None leaves the field alone.
RULES: list[tuple[str, int | None]] = [
    (r"^(num_|in_|input_|audio_|stem_num_)?channels$|chunk_size_feed_forward|pretraining_tp|^type_vocab_size", None),
    (r"vocab_size|_vocab$|_vocab_size_base$|num_embeddings$|codebook_size$", VOCAB),
    (r"^num_position_embeddings$|^num_patches$", (IMAGE // PATCH) ** 2),
    (r"^posemb_grid_size$|^pos_emb_(height|width)$", IMAGE // PATCH),
    (r"^max_source_positions$", 16),
    (r"position_embeddings$|positions$|^n_ctx$|max_seq_len|^context_length$|^max_length$|^mem_len$", 160),
    # experts and their choice
    (r"shared_experts$", 1),
    (r"experts_per_tok|top_?k_experts|moe_top_?k|moe_k$|num_selected_experts|^top_k$", 2),
    (r"experts$|^zero_expert_num$", 4),
    (r"^n_group$|^num_expert_group$", 2),
    (r"^topk_group$|first_k_dense_replace|^num_dense_layers$", 1),
    (r"^index_(topk|block_size)$", 4),
    (r"^index_topk_blocks$", 2),
    # attention
    (r"^rotary_dim$|^qk_rope_head_dim$", 4),
    (r"head_dim$|head_dims$|^d_head$|^dim_head$|_dim_head$|^d_kv$|^kv_channels$|head_size$|^mamba_d_head$", HEAD_DIM),
    (r"^linear_num_key_heads$|^index_n_heads$", 2),
    (r"^mamba_(n|num)_heads$", 2 * HIDDEN // HEAD_DIM),
    (r"heads?$", HEADS),
    (r"^window_size$|^sliding_window$|sliding_window_size$|attention_chunk_size|^local_attention$|attention_window", 4),
    # depth
    (r"^num_(mtp|nextn_predict)_layers$", None),
    (r"(^|_)(num_)?(layers|n_layers?|depth|blocks|num_layers_per_stack)$|^n_layers?$", LAYERS),
    # state-space models
    (r"d_state$|state_size$", 8),
    (r"^chunk_size$|^mamba_chunk_size$", 4),
    (r"rank$|_lowrank$", 8),
    # feed-forward before hidden: expert_ffn_hidden_size
    (r"intermediate|ffn|^d_ff$|^dff$|^dim_ff$|mlp_dim|feed_forward_size|^d_inner$|mlp_hidden", INTERMEDIATE),
    (r"^d_rel$", 8),
    (r"hidden|^d_model$|_d_model$|embd$|embed_dim$|embedding_dim$|embedding_size$|emb_(dim|size)$|^dim$", HIDDEN),
    (r"(output|input|proj|projection|projector|latent|codevector|codebook|expert)_?(size|dim)$|^lru_width$", HIDDEN),
    (r"(^|_)d_latents$|_proj_dim$|_proj_size$|pooler_output_size|classifier_proj|xvector|output_channels$", HIDDEN),
    # images and sounds
    (r"^(crop|image|max_image|min_image)_size$|^resolution$", IMAGE),
    (r"^patch_size$", PATCH),
    (r"mel_bins$|^input_feat_(size|per_channel)$", 16),
    (r"^image_seq_length$|mm_tokens_per_image|^num_(query_tokens|image_tokens|latents)$", (IMAGE // PATCH) ** 2),
    (r"_channels$|^num_filters$|_units$", HIDDEN),
]
_RULES = [(re.compile(pattern), value) for pattern, value in RULES]
_KV = re.compile(r"(key_value_heads|kv_heads|kv_n_heads)$")
_PLACEHOLDER = re.compile(r"_token_(id|index)$|^(bos|eos|pad|sep|im_\w+|image_patch)_(id|index)$|^(bos|eos|pad)_index$")
# Lists that hold layer numbers, not one entry per layer.
_INDICES = re.compile(r"(_idxs|_indexes|_indices|layer_ids)$|^(moe|cross_attention|rope_scaling|mlp_only)_layers$")
_WIDTHS = re.compile(r"hidden_sizes$|^embed_dims?$|_channels$|^conv_dim$|^tdnn_dim$|attn_unit_dims$|num_filters$")


def _number(name: str, value: int) -> int:
    """The shrunk value of one integer field."""
    for pattern, largest in _RULES:
        if pattern.search(name):
            return value if largest is None else min(value, largest)
    return value


def _sequence(name: str, value: Any) -> Any:
    """The shrunk value of a list with one entry per stage of a pyramid, or per axis of an image."""
    if not value or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
        return value
    if _WIDTHS.search(name):
        short = [min(v, 16 if i == 0 else HIDDEN if i < 3 else 2 * HIDDEN) for i, v in enumerate(value)]
    elif re.search(r"heads$", name):
        short = [min(v, 2**i, HEADS) for i, v in enumerate(value)]
    elif re.search(r"^depths?$|num_blocks$|layers?$|repeats$|_numb_of_layers$", name):
        short = [min(v, 2) for v in value]
    else:
        short = [_number(name, v) for v in value]
    return type(value)(short)


def _layers(values: dict[str, Any]) -> list[int] | None:
    """Numbers of the layers to keep, so that every kind of layer stays; None where the depth is no single number."""
    count = values.get("num_hidden_layers") or values.get("num_layers") or values.get("n_layers") or values.get("depth")
    if not isinstance(count, int) or count < 1:
        return None
    features: list[list[Any]] = []
    for name, value in values.items():
        if not isinstance(value, (list, tuple)) or isinstance(value, str):
            continue
        if _INDICES.search(name):
            features.append([i in value for i in range(count)])
        elif len(value) == count and len({str(v) for v in value}) <= 5:
            features.append([str(v) for v in value])
    seen: set[tuple[int, Any]] = set()
    chosen = []
    for i in range(count):
        new = {(k, feature[i]) for k, feature in enumerate(features)} - seen
        if new or i == 0:
            chosen.append(i)
            seen |= new
    for i in range(count):
        if len(chosen) < LAYERS and i not in chosen:
            chosen = sorted([*chosen, i])
    return chosen


def _rope(value: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Rotary parameters for the smaller head: sections that sum to half of it, factors of its length."""
    value = {k: _rope(v, head_dim) if isinstance(v, dict) else v for k, v in value.items()}
    if "mrope_section" in value:
        partial = max(value.get("partial_rotary_factor", 1.0), 0.5)
        if "partial_rotary_factor" in value:
            value["partial_rotary_factor"] = partial
        half, sections = int(head_dim * partial) // 2, len(value["mrope_section"])
        value["mrope_section"] = [half // sections + (i < half % sections) for i in range(sections)]
    if "original_max_position_embeddings" in value:
        value["original_max_position_embeddings"] = min(value["original_max_position_embeddings"], 64)
    for name in ("short_factor", "long_factor"):
        if name in value:
            value[name] = [1.0 + i / 10 for i in range(head_dim // 2)]
    return value


class Shrinker:
    """Shrinks one model's configuration with all its parts; placeholders get the same id wherever they occur."""

    def __init__(self, overrides: dict[str, dict[str, Any]]) -> None:
        self.overrides = overrides
        self.placeholders: dict[str, int] = {}

    def placeholder(self, name: str, value: Any) -> Any:
        """A special token's id below the size of the vocabulary."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.placeholder(f"{name}.{i}", v) for i, v in enumerate(value))
        stem = re.sub(r"_(token_)?(id|index)$", "", name)
        usual = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 2, "sep": 3, "cls": 4, "mask": 5, "unk": 6}
        if stem.split(".")[0] in usual and "." not in name:
            return value if 0 <= value < TEXT_IDS[0] else usual[stem]
        if "image" in name or "video" in name or "audio" in name or value < 0 or value >= TEXT_IDS[0]:
            return self.placeholders.setdefault(stem, VOCAB - 1 - len(self.placeholders))
        return value

    def shrink(self, cls: type[PreTrainedConfig], overrides: dict[str, Any] | None = None, base: Any = None) -> Any:
        """A tiny configuration of this class.

        Args:
            cls: the class of the configuration.
            overrides: values from the enclosing configuration.
            base: the configuration to shrink; None for the class's default.
        """
        extra = dict(self.overrides.get(cls.model_type, {}))
        extra.update(overrides or {})
        start = extra.pop("start", {})
        base = cls(**start) if base is None else base
        values = dict(vars(base))
        declared = {f.name: f.default for f in dataclasses.fields(cls)}
        # A declared name may be another name of the attribute that holds the value.
        values |= {n: values[a] for n in declared if (a := cls.attribute_map.get(n, n)) in values}
        layers = _layers(values)
        names = set(declared) | {k for k, v in values.items() if is_config(v)}
        result: dict[str, Any] = dict(start)
        for name in names:
            if name.startswith("_") or name in ("id2label", "label2id", "num_labels") or name not in values:
                continue
            value, further = values[name], extra.get(name)
            if is_config(value):
                nested = further if isinstance(further, dict) else {}
                kind = nested.pop("model_type", None) if (nested := dict(nested)) else None
                if kind is not None:
                    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

                    result[name] = self.shrink(CONFIG_MAPPING[kind], nested)
                else:
                    result[name] = self.shrink(type(value), nested, None if "start" in nested else value)
                extra.pop(name, None)
            elif name == "use_cache":
                result[name] = False
            elif isinstance(value, int) and not isinstance(declared.get(name), int) and "_id" not in name:
                continue  # worked out from other fields: once more from the shrunk ones
            elif value is not None and not isinstance(value, (bool, float, str)):
                result[name] = self.value(name, value, values, layers)
        if "num_labels" in values or "id2label" in values:
            result["num_labels"] = 3
        result.update(extra)
        return cls(**{k: v for k, v in result.items() if v != "DROP"})

    def value(self, name: str, value: Any, values: dict[str, Any], layers: list[int] | None) -> Any:
        """The shrunk value of one field that is neither a switch, a real number, a word nor a configuration."""
        if _PLACEHOLDER.search(name):
            return self.placeholder(name, value)
        if isinstance(value, int):
            if _KV.search(name):
                heads = next((values[n] for n in ("num_attention_heads", "num_heads", "n_heads") if values.get(n)), 0)
                return HEADS if value == heads else min(value, HEADS // 2)
            if name in ("num_hidden_layers", "num_layers", "n_layers", "depth") and layers is not None:
                return len(layers)
            if name == "patch_size":
                return PATCH if value >= PATCH else value
            return _number(name, value)
        if isinstance(value, dict):
            return _rope(value, HEAD_DIM) if name.startswith("rope") else value
        if not isinstance(value, (list, tuple)):
            return value
        count = next((values[n] for n in ("num_hidden_layers", "num_layers", "n_layers", "depth") if values.get(n)), 0)
        if layers is not None and _INDICES.search(name):
            if name in ("out_indices",):
                return value
            return type(value)(k for k, i in enumerate(layers) if i in value) or type(value)([len(layers) - 1])
        if layers is not None and len(value) == count and count > 1:
            value = type(value)(value[i] for i in layers)
        if name == "vision_feature_layer":
            return [-1 - i for i in range(len(value))]
        return _sequence(name, value)


def is_config(value: Any) -> bool:
    """Whether a field holds a configuration."""
    return isinstance(value, PreTrainedConfig)
