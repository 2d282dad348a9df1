"""vit-pytorch: every module of the package that defines a model with a plain forward, tiny."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from case import Built, Case, NotBuildable
from prepare import pooled, prepare
from torch import Tensor, nn

HEAD = {"num_classes": 10}
WIDTH = {"dim": 32, "heads": 2, "dim_head": 16, "mlp_dim": 48}
STACK = {**WIDTH, **HEAD, "depth": 2}
PICTURE = {"image_size": 32, "patch_size": 8, **STACK}
MOVIE = {"image_size": 16, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2, **STACK}
SERIES = {"seq_len": 32, "patch_size": 4, **STACK}
GRID = {"ndim": 3, "input_shape": (4, 8, 8), "patch_size": (2, 4, 4), **STACK}

IMAGE = (2, 3, 32, 32)
VIDEO = (2, 3, 4, 16, 16)

# Module, class, keywords, shape of the input; words in brackets tell variants of one class apart.
PLAIN: list[tuple[str, str, dict[str, Any], tuple[int, ...]]] = [
    ("ats_vit", "ViT", {**PICTURE, "max_tokens_per_depth": (12, 8)}, IMAGE),
    ("attn_residual_with_dca_simple_vit", "SimpleViT", PICTURE, IMAGE),
    ("cait", "CaiT", {**PICTURE, "cls_depth": 1}, IMAGE),
    ("cross_vit", "CrossViT",
     {"image_size": 32, "sm_dim": 24, "lg_dim": 32, "sm_patch_size": 4, "lg_patch_size": 8, "sm_enc_heads": 2,
      "sm_enc_mlp_dim": 32, "sm_enc_dim_head": 8, "lg_enc_depth": 1, "lg_enc_heads": 2, "lg_enc_mlp_dim": 32,
      "lg_enc_dim_head": 8, "cross_attn_heads": 2, "cross_attn_dim_head": 8, "depth": 2, **HEAD}, IMAGE),
    ("crossformer", "CrossFormer",
     {"dim": (32, 32, 64, 64), "depth": (1, 1, 1, 1), "global_window_size": (4, 2, 2, 1), "local_window_size": 2,
      **HEAD}, (2, 3, 64, 64)),
    ("cvt", "CvT",
     {"s1_emb_dim": 16, "s2_emb_dim": 32, "s2_heads": 2, "s2_depth": 1, "s3_emb_dim": 32, "s3_heads": 2, "s3_depth": 1,
      **HEAD}, (2, 3, 64, 64)),
    ("deepvit", "DeepViT", PICTURE, IMAGE),
    ("jet_vit", "JetViT", {**PICTURE, "window_size": 2}, IMAGE),
    ("jumbo_vit", "JumboViT", PICTURE, IMAGE),
    ("learnable_memory_vit", "ViT", PICTURE, IMAGE),
    ("levit", "LeViT",
     {"image_size": 64, "dim": (32, 48, 64), "depth": 1, "heads": (2, 3, 4), "mlp_mult": 2, "dim_key": 8,
      "dim_value": 16, **HEAD}, (2, 3, 64, 64)),
    # Its feed-forward applies LayerNorm(dim) to (B, dim, h, w): that runs only where the width is dim.
    ("local_vit", "LocalViT", {**PICTURE, "patch_size": 2, "dim": 16}, IMAGE),
    ("look_vit", "LookViT",
     {"image_size": 32, "patch_size": 16, "highres_patch_size": 8, "dim": 32, "depth": 2, "heads": 2, "dim_head": 16,
      "cross_attn_heads": 2, "cross_attn_dim_head": 16, **HEAD}, IMAGE),
    ("looped_vit", "LoopedViT",
     {"image_size": 32, "patch_size": 8, **WIDTH, **HEAD, "pre_loop_depth": 1, "num_looped_blocks": 1,
      "post_loop_depth": 1, "loop_depth": 2}, IMAGE),
    ("max_vit", "MaxViT", {"dim": 32, "dim_head": 16, "depth": (1, 1), "window_size": 2, **HEAD}, IMAGE),
    ("max_vit_with_registers", "MaxViT", {"dim": 32, "dim_head": 16, "depth": (1, 1), "window_size": 2, **HEAD}, IMAGE),
    ("mobile_vit", "MobileViT",
     {"image_size": (64, 64), "dims": [16, 24, 32], "channels": [8, 8, 12, 12, 16, 16, 24, 24, 32, 32, 64],
      "depths": (1, 1, 1), **HEAD}, (2, 3, 64, 64)),
    ("mp3", "ViT", PICTURE, IMAGE),
    ("nest", "NesT",
     {"image_size": 32, "patch_size": 4, "dim": 16, "heads": 2, "num_hierarchies": 2, "block_repeats": (1, 1),
      "dim_head": 8, **HEAD}, IMAGE),
    ("normalized_vit", "nViT", PICTURE, IMAGE),
    ("parallel_vit", "ViT", PICTURE, IMAGE),
    ("pit", "PiT", {**PICTURE, "depth": (1, 1)}, IMAGE),
    ("regionvit", "RegionViT",
     {"dim": (16, 32, 32, 64), "depth": (1, 1, 1, 1), "window_size": 2, "use_peg": True, **HEAD}, (2, 3, 64, 64)),
    ("rvt", "RvT", PICTURE, IMAGE),
    ("scalable_vit", "ScalableViT",
     {"dim": 16, "heads": (1, 2, 2, 4), "depth": (1, 1, 1, 1), "ssa_dim_key": 8, "iwsa_dim_key": 8, "ssa_dim_value": 8,
      "iwsa_dim_value": 8, "reduction_factor": (4, 2, 1, 1), "window_size": (4, 4, None, None), **HEAD},
     (2, 3, 64, 64)),
    ("sep_vit", "SepViT",
     # window_size does not reach its attention, which keeps 7: so 224 pixels.
     {"dim": 8, "dim_head": 8, "heads": (1, 1, 2, 2), "depth": (1, 1, 1, 1), **HEAD}, (2, 3, 224, 224)),
    ("simple_flash_attn_vit", "SimpleViT", PICTURE, IMAGE),
    ("simple_flash_attn_vit_3d", "SimpleViT", MOVIE, VIDEO),
    ("simple_uvit", "SimpleUViT", PICTURE, IMAGE),
    ("simple_vit", "SimpleViT", PICTURE, IMAGE),
    ("simple_vit_1d", "SimpleViT", SERIES, (2, 3, 32)),
    ("simple_vit_3d", "SimpleViT", MOVIE, VIDEO),
    ("simple_vit_attn_residual", "SimpleViTAttnResidual", PICTURE, IMAGE),
    ("simple_vit_orthog_residual_update", "SimpleViT", PICTURE, IMAGE),
    ("simple_vit_with_fft", "SimpleViT", {**PICTURE, "freq_patch_size": 8}, IMAGE),
    ("simple_vit_with_hyper_connections", "SimpleViT", {**PICTURE, "num_residual_streams": 2}, IMAGE),
    ("simple_vit_with_patch_dropout", "SimpleViT", PICTURE, IMAGE),
    ("simple_vit_with_qk_norm", "SimpleViT", PICTURE, IMAGE),
    ("simple_vit_with_register_tokens", "SimpleViT", PICTURE, IMAGE),
    ("simple_vit_with_relative_proj_pos_bias", "SimpleViT", PICTURE, IMAGE),
    ("simple_vit_with_sparse_gating", "SimpleViTWithSparseGating", PICTURE, IMAGE),
    ("simple_vit_with_specialized_cls", "SimpleViT", PICTURE, IMAGE),
    ("simple_vit_with_value_residual", "SimpleViT", PICTURE, IMAGE),
    ("t2t", "T2TViT", {"image_size": 32, **STACK}, IMAGE),
    ("twins_svt", "TwinsSVT",
     {"s1_emb_dim": 16, "s1_local_patch_size": 2, "s1_global_k": 4, "s2_emb_dim": 16, "s2_local_patch_size": 2,
      "s2_global_k": 2, "s3_emb_dim": 32, "s3_local_patch_size": 2, "s3_global_k": 2, "s3_depth": 1, "s4_emb_dim": 32,
      "s4_local_patch_size": 2, "s4_global_k": 2, "s4_depth": 1, **HEAD}, (2, 3, 64, 64)),
    ("vit", "ViT", PICTURE, IMAGE),
    ("vit", "ViT (mean pool)", {**PICTURE, "pool": "mean"}, IMAGE),
    ("vit_1d", "ViT", SERIES, (2, 3, 32)),
    ("vit_3d", "ViT", MOVIE, VIDEO),
    ("vit_5", "ViT", PICTURE, IMAGE),
    ("vit_detpool", "ViTDetPool", PICTURE, IMAGE),
    ("vit_for_small_dataset", "ViT", PICTURE, IMAGE),
    ("vit_nd", "ViTND", GRID, (2, 3, 4, 8, 8)),
    ("vit_nd", "ViTND (causal)", {**GRID, "causal_dims": (0,)}, (2, 3, 4, 8, 8)),
    ("vit_nd_pope", "ViTND", GRID, (2, 3, 4, 8, 8)),
    ("vit_nd_rotary", "ViTND", GRID, (2, 3, 4, 8, 8)),
    ("vit_with_decorr", "ViT", PICTURE, IMAGE),
    ("vit_with_keel_post_ln", "ViT", PICTURE, IMAGE),
    ("vit_with_patch_dropout", "ViT", PICTURE, IMAGE),
    ("vit_with_patch_merger", "ViT", {**PICTURE, "patch_merge_layer": 0, "patch_merge_num_tokens": 4}, IMAGE),
    ("vivit", "ViViT", {**MOVIE, "spatial_depth": 1, "temporal_depth": 1}, VIDEO),
    ("vivit", "ViViT (factorized self-attention)",
     {**MOVIE, "spatial_depth": 1, "temporal_depth": 1, "variant": "factorized_self_attention"}, VIDEO),
    # causal in time: a class token in front would see nothing
    ("vivit_with_moss", "ViViT", {**MOVIE, "spatial_depth": 1, "temporal_depth": 1, "moss_hidden_dim": 16, "pool": "mean"}, VIDEO),
    ("wwt", "WWT", {**PICTURE, "num_slots": 4}, IMAGE),
    ("xcit", "XCiT", {**PICTURE, "cls_depth": 1}, IMAGE),
]  # fmt: skip


def _class(module: str, name: str) -> type[nn.Module]:
    """The class `name` of vit_pytorch's `module`; a bracketed variant is not part of the class's name."""
    try:
        return getattr(import_module(f"vit_pytorch.{module}"), name.split(" (")[0])
    except ModuleNotFoundError as error:
        raise NotBuildable(f"needs the package {error.name}") from error


def _first(output: tuple[Tensor, ...]) -> Tensor:
    return output[0][:, 1]


def _plain(module: str, name: str, keywords: dict[str, Any], shape: tuple[int, ...]) -> Built:
    torch.manual_seed(0)
    # ViViT has two depths instead of `depth`.
    if "spatial_depth" in keywords:
        keywords = {key: value for key, value in keywords.items() if key != "depth"}
    model = _class(module, name)(**keywords)
    # ViT with decorrelation returns its auxiliary loss beside the logits.
    return prepare(model, torch.randn(shape), target=_first if module == "vit_with_decorr" else None)


def _efficient() -> Built:
    """ViT around any encoder; here torch's own."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 48, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    vit = _class("efficient", "ViT")
    return prepare(vit(image_size=32, patch_size=8, dim=32, transformer=encoder, **HEAD), torch.randn(IMAGE))


def _cct() -> Built:
    torch.manual_seed(0)
    sizes = {"embedding_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2.0, "kernel_size": 3, "padding": 1}
    return prepare(_class("cct", "CCT")(img_size=32, **sizes, **HEAD), torch.randn(IMAGE))


def _cct_3d() -> Built:
    torch.manual_seed(0)
    sizes = {"embedding_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2.0, "kernel_size": 3, "padding": 1}
    return prepare(_class("cct_3d", "CCT")(img_size=16, num_frames=4, **sizes, **HEAD), torch.randn(VIDEO))


def _adapter() -> Built:
    torch.manual_seed(0)
    vit = _class("learnable_memory_vit", "ViT")(**PICTURE)
    adapter = _class("learnable_memory_vit", "Adapter")(vit=vit, num_memories_per_layer=3, num_classes=10)
    return prepare(adapter, torch.randn(IMAGE))


def _distillable(name: str) -> Built:
    """The student of a distillation with its distillation token, which its forward then also returns."""
    if name != "DistillableViT":
        raise NotBuildable("DistillMixin repeats the class token as 'n d', this class's has three axes (1.26.11)")
    torch.manual_seed(0)
    token = torch.randn(1, 32)
    model = _class("distill", name)(**PICTURE)
    return prepare(model, torch.randn(IMAGE), inputs={"distill_token": token}, target=_first)


def _accept_video() -> Built:
    torch.manual_seed(0)
    vit = _class("vit", "ViT")(**PICTURE)
    model = _class("accept_video_wrapper", "AcceptVideoWrapper")(vit)
    return prepare(model, torch.randn(2, 3, 2, 32, 32), target=lambda output: output[:, :, 1].mean(1))


def _navit(module: str) -> Built:
    """Pictures of different sizes, packed into one sequence."""
    torch.manual_seed(0)
    if module.endswith("3d"):
        sizes = {"image_size": 32, "max_frames": 4, "patch_size": 8, "frame_patch_size": 2, **STACK}
        volumes = [torch.randn(3, 4, 16, 16), torch.randn(3, 2, 32, 16)]
        return prepare(_class(module, "NaViT")(**sizes), volumes)
    pictures = [torch.randn(3, 32, 16), torch.randn(3, 16, 24)]
    return prepare(_class(module, "NaViT")(**PICTURE), [pictures] if module == "na_vit" else pictures)


def _levjepa_transformer(module: str, name: str) -> Built:
    """The encoders of the LeV-JEPA trainers; they give tokens, not logits."""
    torch.manual_seed(0)
    if name == "VideoTransformer":
        sizes: dict[str, Any] = {"image_size": 16, "patch_size": 8, "frames": 2}
        # Its causal mask calls torch.compile on a mask function, which create_block_mask then does not accept.
        model = _class(module, name)(**sizes, **WIDTH, depth=2, block_causal=False)
        return prepare(model, torch.randn(2, 3, 2, 16, 16), target=pooled)
    sizes = {"ndim": 3, "input_shape": (4, 8, 8), "patch_size": (2, 4, 4)}
    return prepare(_class(module, name)(**sizes, **WIDTH, depth=2), torch.randn(2, 3, 4, 8, 8), target=pooled)


def _action(module: str, name: str) -> Built:
    """Vision-action transformers: pictures (B, views, C, H, W) to a chunk of actions."""
    torch.manual_seed(0)
    views = torch.randn(2, 1, 3, 32, 32)
    sizes: dict[str, Any] = {**WIDTH, "depth": 2, "dim_action": 5, "action_chunk_len": 3, "self_attn_heads": 2,
                             "self_attn_dim_head": 8}  # fmt: skip
    if name == "SigLIPVAT":
        eyes = {"image_size": 28, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48}
        model = _class(module, name)(**sizes, **{f"siglip_{key}": value for key, value in eyes.items()})
        return prepare(model, torch.randn(2, 1, 3, 28, 28), target=pooled)
    if name == "VAAT":
        ast = _class(module, "AST")(dim=32, depth=2, mlp_dim=48, heads=2, dim_head=16, patch_size=8, accept_spec=True)
        model = _class(module, name)(_class(module, "ViT")(**PICTURE), ast, **sizes)
        return prepare(model, views, torch.randn(2, 1, 32, 32), target=pooled)
    return prepare(_class(module, name)(_class(module, "ViT")(**PICTURE), **sizes), views, target=pooled)


def _extractor() -> Built:
    """Tokens of a ViT's last layer, taken by a hook."""
    torch.manual_seed(0)
    model = _class("extractor", "Extractor")(_class("vit", "ViT")(**PICTURE), return_embeddings_only=True, detach=False)
    return prepare(model, torch.randn(IMAGE), target=pooled)


def cases() -> list[Case]:
    """All models except MAE, SimMIM, MPP, MP3, Dino, EsViT and the JEPA trainers: their output is a random loss."""
    listed: list[Case] = []

    def add(name: str, build: Callable[..., Built], *args: Any) -> None:
        listed.append(Case("pypi", "vit-pytorch", name, lambda: build(*args)))

    for module, name, keywords, shape in PLAIN:
        add(f"{module}.{name}", _plain, module, name, keywords, shape)
    add("efficient.ViT", _efficient)
    add("cct.CCT", _cct)
    add("cct_3d.CCT", _cct_3d)
    add("learnable_memory_vit.Adapter", _adapter)
    for name in ("DistillableViT", "DistillableT2TViT", "DistillableEfficientViT"):
        add(f"distill.{name}", _distillable, name)
    add("accept_video_wrapper.AcceptVideoWrapper", _accept_video)
    for module in ("na_vit", "na_vit_nested_tensor", "na_vit_nested_tensor_3d"):
        add(f"{module}.NaViT", _navit, module)
    add("levjepa.VideoTransformer", _levjepa_transformer, "levjepa", "VideoTransformer")
    add("levjepa_nd.NDTransformer", _levjepa_transformer, "levjepa_nd", "NDTransformer")
    for module, name in (("vat", "VAT"), ("vat_siglip", "SigLIPVAT"), ("vaat", "VAAT")):
        add(f"{module}.{name}", _action, module, name)
    add("extractor.Extractor", _extractor)
    return listed
