"""timm: a small member of every module, and of every architecture within the modules that hold several."""

from __future__ import annotations

import sys
from typing import Any

import torch
from case import Built, Case
from prepare import prepare
from try_build import try_all

# What shrinks a model, as far as its builder takes it. Stages of one block do without a shifted window, so Swins have
# two in their first stages.
THIN = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
SHALLOW = {"img_size": 64, "depth": 2}
SIZED = {"img_size": 64}
STAGES = {"depths": (1, 1, 1, 1)}
THREE_STAGES = {"depths": (1, 1, 1)}
SIZED_STAGES = {"img_size": 64, "depths": (1, 1, 1, 1)}
SHIFTED = {"img_size": 64, "depths": (2, 2, 1, 1), "window_size": 4}
LAYERS = {"layers": (1, 1, 1, 1)}

# Module, keywords, models.
MODELS: list[tuple[str, dict[str, Any], str]] = [
    ("beit", THIN, "beit_base_patch16_224 beitv2_base_patch16_224"),
    ("byoanet", {}, "halonet_h1 eca_halonext26ts haloregnetz_b"),
    ("byoanet", SIZED, "eca_botnext26ts_256 lambda_resnet26rpt_256"),
    ("byobnet", SIZED, "mobileone_s1 gernet_s repvgg_a0 regnetz_b16 regnetz_b16_evos gcresnext26ts"),
    ("byobnet", {}, "bat_resnext26ts"),
    ("cait", THIN, "cait_xxs24_224"),
    ("coat", SIZED, "coat_tiny coat_lite_tiny"),
    ("convit", THIN, "convit_tiny"),
    ("convmixer", {}, "convmixer_768_32"),
    ("convnext", STAGES, "test_convnext test_convnext2 convnext_zepto_rms convnext_atto_rms convnextv2_atto"),
    ("cpubone", {}, "cpubone_nano"),
    ("crossvit", {}, "crossvit_tiny_240 crossvit_9_dagger_240"),
    ("csatv2", {}, "csatv2"),
    ("cspnet", {}, "cs3darknet_s cspresnext50 cs3darknet_focus_s darknet17"),
    ("cspnext", STAGES, "cspnext_tiny"),
    ("davit", STAGES, "davit_tiny"),
    ("deepseek_vit", {**THIN, "img_size": 84}, "deepseek_vit_412m"),
    ("deit", THIN, "deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224"),
    ("densenet", {}, "densenet121"),
    ("dla", {}, "dla46x_c dla60_res2next"),
    ("dpn", {}, "dpn48b"),
    ("edgenext", STAGES, "edgenext_xx_small"),
    ("efficientformer", {"depths": (1, 1, 1, 1)}, "efficientformer_l1"),
    ("efficientformer_v2", SIZED_STAGES, "efficientformerv2_s0"),
    ("efficientnet", {},
     "efficientnet_b0 mobilenetv2_035 mnasnet_small tinynet_e mixnet_s test_efficientnet_gn "
     "test_efficientnet_evos efficientnet_cc_b0_4e efficientnet_lite0 fbnetc_100 mobilenet_edgetpu_v2_xs "
     "efficientnetv2_rw_t mobilenetv1_100"),
    ("efficientvim", THREE_STAGES, "efficientvim_m1"),
    ("efficientvit_mit", STAGES, "efficientvit_b0 efficientvit_l1"),
    ("efficientvit_msra", SIZED, "efficientvit_m0"),
    ("eva", THIN,
     "eva02_tiny_patch14_224 vit_tiny_patch16_dinov3_qkvb vit_pe_core_tiny_patch16_384 "
     "vit_small_patch16_rope_mixed_ape_224 vit_small_plus_patch16_dinov3"),
    ("fasternet", STAGES, "fasternet_t0"),
    ("fastvit", LAYERS, "fastvit_t8 fastvit_sa12"),
    ("focalnet", {}, "focalnet_tiny_srf"),
    ("gcvit", SIZED, "gcvit_xxtiny"),
    ("gemma4_vit", THIN, "gemma4_vit_167m"),
    ("ghostnet", {}, "ghostnet_050 ghostnetv2_100 ghostnetv3_050"),
    ("hardcorenas", {}, "hardcorenas_a"),
    ("hgnet", {}, "hgnetv2_b0 hgnet_tiny"),
    ("hiera", SIZED, "hiera_tiny_224 hiera_small_abswin_256"),
    ("hieradet_sam2", {}, "sam2_hiera_tiny"),
    ("hrnet", {}, "hrnet_w18_small"),
    ("iformer", {}, "iformer_t"),
    ("inception_next", STAGES, "inception_next_atto"),
    ("inception_resnet_v2", {}, "inception_resnet_v2"),
    ("inception_v3", {}, "inception_v3"),
    ("inception_v4", {}, "inception_v4"),
    ("lcnetv2", STAGES, "lcnetv2_small"),
    ("levit", SIZED, "levit_128s levit_conv_128s"),
    ("lowformer", {}, "lowformer_b0"),
    ("mambaout", STAGES, "test_mambaout mambaout_femto"),
    ("maxxvit", SIZED_STAGES,
     "test_coatnet test_maxvit maxvit_rmlp_pico_rw_256 coatnext_nano_rw_224 coatnet_nano_cc_224 "
     "maxxvit_rmlp_nano_rw_256 maxvit_tiny_tf_224"),
    ("metaformer", {}, "poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18"),
    ("mlp_mixer", SIZED, "gmlp_ti16_224 gmixer_12_224 resmlp_12_224 mixer_s32_224"),
    ("mobilenetv3", {},
     "mobilenetv3_small_050 lcnet_035 mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium fbnetv3_b"),
    ("mobilenetv5", {}, "mobilenetv5_base"),
    ("mobilevit", SIZED, "mobilevit_xxs mobilevitv2_050"),
    ("mvitv2", SIZED, "mvitv2_tiny mvitv2_small_cls"),
    ("naflexvit", THIN, "naflexvit_base_patch16_gap naflexvit_base_patch16_map"),
    ("nasnet", {}, "nasnetalarge"),
    ("nest", SIZED, "nest_tiny"),
    ("nextvit", {}, "nextvit_small"),
    ("nfnet", STAGES, "test_nfnet nf_regnet_b0 dm_nfnet_f0 nf_ecaresnet26"),
    ("pit", SIZED, "pit_ti_224 pit_ti_distilled_224"),
    ("pnasnet", {}, "pnasnet5large"),
    ("pvt_v2", STAGES, "pvt_v2_b0 pvt_v2_b2_li"),
    ("qwen3_vit", THIN, "qwen3_vit_88m"),
    ("rdnet", {}, "rdnet_tiny"),
    ("regnet", {}, "regnetx_002 regnety_002 regnetv_040"),
    ("repghost", {}, "repghostnet_050"),
    ("repvit", SIZED, "repvit_m0_9"),
    ("res2net", LAYERS, "res2net50_14w_8s"),
    ("resnest", LAYERS, "resnest14d"),
    ("resnet", LAYERS,
     "test_resnet resnet18 resnetblur18 seresnet18 ecaresnet26t resnetaa34d resnext50_32x4d resnetrs50 senet154"),
    ("resnetv2", LAYERS, "resnetv2_18 resnetv2_50d_gn resnetv2_50d_evos resnetv2_50d_frn"),
    ("resnetv2", {}, "resnetv2_50x1_bit"),
    ("rexnet", {}, "rexnet_100 rexnetr_100"),
    ("selecsls", {}, "selecsls42"),
    ("senet", LAYERS, "legacy_seresnet18"),
    ("sequencer", LAYERS, "sequencer2d_s"),
    ("shvit", {}, "shvit_s1"),
    ("sknet", LAYERS, "skresnet18"),
    ("starnet", STAGES, "starnet_s050"),
    ("swiftformer", LAYERS, "swiftformer_xs"),
    ("swin_transformer", SHIFTED, "swin_tiny_patch4_window7_224 swin_s3_tiny_224"),
    ("swin_transformer_v2", SHIFTED, "swinv2_tiny_window8_256"),
    ("swin_transformer_v2_cr", SHIFTED, "swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224"),
    ("tiny_vit", STAGES, "tiny_vit_5m_224"),
    ("tnt", SHALLOW, "tnt_s_patch16_224"),
    ("tresnet", LAYERS, "tresnet_m"),
    ("twins", SIZED_STAGES, "twins_svt_small twins_pcpvt_small"),
    ("vgg", {}, "vgg11 vgg11_bn"),
    ("visformer", THIN, "visformer_tiny"),
    ("vision_transformer", THIN,
     "vit_tiny_patch16_224 test_vit test_vit2 test_vit3 test_vit4 vit_small_patch14_reg4_dinov2 "
     "vit_wee_patch16_reg1_gap_256 vit_dpwee_patch16_reg1_gap_256 vit_pwee_patch16_reg1_gap_256 "
     "vit_xsmall_patch16_clip_224 flexivit_small vit_base_patch16_siglip_224 vit_base_patch16_rpn_224 "
     "vit_base_patch32_clip_quickgelu_224 aimv2_large_patch14_224 beit3_base_patch16_224"),
    ("vision_transformer_hybrid", THIN, "vit_tiny_r_s16_p8_224"),
    ("vision_transformer_hybrid", SHALLOW, "vit_base_mci_224"),
    ("vision_transformer_relpos", THIN, "test_vit_relpos vit_srelpos_small_patch16_224 vit_relpos_small_patch16_224"),
    ("vision_transformer_sam", THIN, "samvit_base_patch16_224"),
    ("vitamin", SHALLOW, "vitamin_small_224"),
    ("volo", SIZED, "volo_d1_224"),
    ("vovnet", {}, "ese_vovnet19b_slim_dw eca_vovnet39b vovnet39a"),
    ("xception", {}, "legacy_xception"),
    ("xception_aligned", {}, "xception41p xception41"),
    ("xcit", THIN, "xcit_nano_12_p8_224 xcit_nano_12_p16_224"),
]  # fmt: skip

# Pixels where it is not 64: position tables or blocks of a fixed size, strides without padding.
SIDES = {
    "halonet_h1": 256,
    "eca_halonext26ts": 256,
    "haloregnetz_b": 224,
    "bat_resnext26ts": 256,
    "deepseek_vit_412m": 84,
    "efficientformer_l1": 224,
    "inception_resnet_v2": 128,
    "inception_v3": 128,
    "inception_v4": 128,
}


def _build(name: str, keywords: dict[str, Any]) -> Built:
    import timm

    torch.manual_seed(0)
    side = SIDES.get(name, 64)
    return prepare(timm.create_model(name, num_classes=10, **keywords), torch.randn(2, 3, side, side))


def cases() -> list[Case]:
    """All of them; timm is imported when one is built."""

    def case(module: str, name: str, keywords: dict[str, Any]) -> Case:
        return Case("timm", module, name, lambda: _build(name, keywords))

    return [case(module, name, keywords) for module, keywords, names in MODELS for name in names.split()]


if __name__ == "__main__":
    sys.exit(bool(try_all(cases(), sys.argv[1] if len(sys.argv) > 1 else None)))
