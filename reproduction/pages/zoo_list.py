"""The entries of ``make zoo``: at least three models for each row of the list of gaps."""

from __future__ import annotations

from typing import Any

from zoo_models import Entry


def _alike(source: str, hidden: str, kinds: str, *gaps: int, **sizes: Any) -> list[Entry]:
    """Return entries whose hidden layers have the same names."""
    return [Entry(kind, source, kind, hidden, sizes, gaps) for kind in kinds.split()]


def _named(
    name: str, source: str, kind: str, hidden: str, *gaps: int, full: bool = True, **sizes: Any
) -> Entry:
    return Entry(name, source, kind, hidden, sizes, gaps, full)


# What hidden layers of transformers are called.
_FC1 = r".*\bfc1"
_GATED = r".*(mlp|feed_forward)\.(gate|up)_proj"
_UP = r".*\.up_proj"
_BERT = r".*\bintermediate\.dense"
_NEOX = r".*dense_h_to_4h"
_T5 = r".*DenseReluDense\.wi(_[01])?"
# Experts that are stacked in a parameter, shared experts, and dense layers among them.
_MOE = r".*(mlp|feed_forward|shared_experts?)\.(gate|up)_proj|.*\bexperts\.gate_up_proj"

_TRANSFORMERS = [
    _named("Phi-3", "transformers", "phi3", r".*\.gate_up_proj", 1),
    _named("GLM", "transformers", "glm", r".*\.gate_up_proj", 1, full=False),
    _named("GLM-4", "transformers", "glm4", r".*\.gate_up_proj", 1),
    _named("ModernBERT", "transformers", "modernbert", r".*mlp\.Wi", 1),
    _named("dinov2 with SwiGLU", "transformers", "dinov2", _GATED, full=False, use_swiglu_ffn=True),
    _named("Mixtral", "transformers", "mixtral", _MOE, 2),
    _named("Qwen3-MoE", "transformers", "qwen3_moe", _MOE, 2),
    _named("OLMoE", "transformers", "olmoe", _MOE, 2),
    _named("GPT-OSS", "transformers", "gpt_oss", _MOE, 2),
    _named("DeepSeek-V3", "transformers", "deepseek_v3", _MOE, 2, num_key_value_heads=4),
    *_alike("transformers", _MOE, "qwen2_moe granitemoe phimoe flex_olmo minimax llama4_text glm4_moe", 2),
    *_alike("transformers", _MOE, "jamba ernie4_5_moe", 2),
    *_alike("transformers", r".*mlp\.input_linear\.weight", "jetmoe", 2),
    *_alike("transformers", r".*mlp\.(experts\.expert_\d+\.)?wi", "switch_transformers", 2),
    *_alike("transformers", r".*ffn\.(experts\.expert_\d+\.)?fc1", "nllb-moe", 2),
    _named("ALBERT", "transformers", "albert", r".*\.ffn", 6),
    _named("ConvNeXtV2", "transformers", "convnextv2", r".*\.pwconv1", 7,
           hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 2, 1], patch_size=4),
    _named("Falcon", "transformers", "falcon", _NEOX, 3),
    _named("Longformer", "transformers", "longformer", _BERT, 11, attention_window=4),
    *_alike("transformers", _FC1, "led", 11, attention_window=4, max_encoder_position_embeddings=64,
            max_decoder_position_embeddings=64),
    *_alike("transformers", _GATED, "bitnet", 8, 10),
    *_alike("transformers", _BERT, "ibert", 8),
    *_alike("transformers", _T5, "t5 umt5", 8),
    *_alike("transformers", _T5, "longt5", 8, 11),
    *_alike("transformers", _FC1, "bart biogpt blenderbot m2m_100 marian mbart opt pegasus phi plbart xglm"),
    *_alike("transformers", _FC1, "beit clip_text_model deit dinov2 siglip_vision_model vit vit_mae"),
    *_alike("transformers", _BERT, "bert convbert data2vec-vision deberta-v2 electra esm fnet mobilebert"),
    *_alike("transformers", _BERT, "mpnet nystromformer rembert roberta roformer tapas yoso"),
    *_alike("transformers", _BERT, "big_bird", 11),
    *_alike("transformers", _GATED, "cohere2 gemma gemma3_text granite llama mistral nomic_bert olmo2", 10),
    *_alike("transformers", _GATED, "qwen2 qwen3 smollm3 stablelm pixtral", 10),
    *_alike("transformers", _UP, "apertus arcee dinov3_vit mpt nemotron"),
    *_alike("transformers", _NEOX, "bloom gpt_neox persimmon"),
    *_alike("transformers", r".*mlp\.c_fc", "gpt2 gpt_bigcode openai-gpt starcoder2"),
    *_alike("transformers", r".*mlp\.fc_in", "codegen gptj"),
    *_alike("transformers", r".*ffn\.lin1", "distilbert"),
    *_alike("transformers", r".*feed_forward\.w[13]", "lfm2"),
    *_alike("transformers", r".*ff\.layer_1", "xlnet"),
    *_alike("transformers", r".*feed_forward\.key", "rwkv"),
]  # fmt: skip

_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_SWIN: dict[str, Any] = {
    "img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2),
}  # fmt: skip
_STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
_GLU = r".*mlp\.fc1(_[gx])?"
# Inverted bottlenecks; `conv_pw` of a first block without expansion is a projection, which no sum takes.
_INVERTED = r"conv_stem|conv_head|blocks\.\d+\.\d+\.(conv_pw|se\.conv_(reduce|expand))"

_TIMM = [
    *_alike("timm", _GLU, "vit_tiny_patch16_224 deit3_small_patch16_224 vit_small_patch16_dinov3", **_VIT),
    *_alike("timm", _GLU, "beit_base_patch16_224 samvit_base_patch16_224", **_VIT),
    _named("DINOv2 with SwiGLU", "timm", "vit_giant_patch14_dinov2", _GLU, 1, **_VIT),
    *_alike("timm", _GLU, "eva02_tiny_patch14_224", 3, **_VIT),
    *_alike("timm", r".*mlp\.fc1", "vit_relpos_small_patch16_224", 9, **_VIT),
    *_alike("timm", _GLU, "cait_xxs24_224", 9, **_VIT | {"depth_token_only": 1}),
    *_alike("timm", r".*mlp\.fc1|patch_embed\.proj\.[024]\.0", "xcit_nano_12_p16_224", 9,
            **_VIT | {"patch_size": 16}),
    *_alike("timm", r".*mlp_(tokens|channels)\.fc1", "mixer_s16_224", 9, img_size=32),
    *_alike("timm", r".*mlp_channels\.fc1", "resmlp_12_224 gmlp_ti16_224", 9, img_size=32),
    *_alike("timm", r".*mlp\.fc1", "convnext_atto", 3, **_STAGES),
    *_alike("timm", r".*mlp\.fc1", "convnextv2_atto", 3, 7, **_STAGES),
    *_alike("timm", r".*mlp\.fc1", "swin_tiny_patch4_window7_224", 9, **_SWIN),
    *_alike("timm", r".*(mlp\.fc1|cpb_mlp\.0)", "swinv2_tiny_window8_256", 9, **_SWIN),
    *_alike("timm", r".*mlp\.fc1", "twins_svt_small", img_size=32, embed_dims=(16,) * 4, depths=(1,) * 4,
            num_heads=(2,) * 4),
    *_alike("timm", r".*mlp\.fc1", "pvt_v2_b0"),
    *_alike("timm", r".*mlp\.fc1", "poolformer_s12", 3),
    *_alike("timm", r".*mlp\.fc1|head\.fc1", "inception_next_atto", 3),
    *_alike("timm", r"stages\.\d\.\d+\.f[12]\.conv", "starnet_s1", 4),
    *_alike("timm", r".*\.fc1|stem\.conv1", "test_mambaout", 1),
    _named("LeViT", "timm", "levit_128s", r"stem\.conv[123]\.linear|.*mlp\.ln1\.linear", 9, img_size=64,
           embed_dim=(32, 32, 32), num_heads=(2, 2, 2), key_dim=8, depth=(1, 1, 1)),
    _named("DenseNet", "timm", "densenet121", r"features\..*conv\d?", 3, growth_rate=8, block_config=(2, 2)),
    _named("MobileNetV2", "timm", "mobilenetv2_035", _INVERTED + r"|blocks\.6\.0\.conv_pwl", 3),
    _named("MobileNetV3", "timm", "mobilenetv3_small_050", _INVERTED + r"|blocks\.5\.0\.conv", 3, 4),
    _named("EfficientNet-B0", "timm", "efficientnet_b0", _INVERTED + r"|blocks\.6\.0\.conv_pwl", 3, 4),
    *_alike("timm", _INVERTED, "lcnet_035 tinynet_e", 3, 4),
    # A sum takes its stem and its first projection.
    *_alike("timm", r"conv_head|blocks\.[1-9]\.\d+\.(conv_pw|se\.conv_(reduce|expand))",
            "mnasnet_small", 3, 4),
    *_alike("timm", r"conv_stem|conv_head|.*(pw_exp|blocks\.[04]\.\d\.conv|blocks\.1\.0)\.conv",
            "mobilenetv4_conv_small_035", 3),
    *_alike("timm", _INVERTED + r"|.*conv_exp|blocks\.0\.0\.conv", "test_efficientnet", 3, 4),
    *_alike("timm", r"conv1\.[03]|layer\d\.\d+\.conv1|layer3\.\d+\.conv2", "test_resnet"),
    *_alike("timm", r"layer\d\.\d+\.(conv1|se\.fc1)", "seresnet18", 4),
]  # fmt: skip


def _ours(hidden: str, name: str, *gaps: int, full: bool = False) -> Entry:
    return Entry(name, "by hand", name, hidden, {}, gaps, full)


_HAND = [
    _named("diffusion U-Net", "by hand", "diffusion U-Net",
           r"stem|pool|up|time\.[02]|.*\.(conv1|time)", 5, 7),
    _ours(r"stem|pool|up|time\.[02]|.*\.(conv1|modulate)", "diffusion U-Net, scale and shift", 5),
    _ours(r"(time|x_in)\d?|hidden", "denoising MLP with time", 5),
    _named("VAE with transposed convolutions", "by hand", "VAE", r"encoder\.[02]|decoder\.[024]", 7),
    _ours(r"[036]", "DCGAN generator", 7),
    _ours(r"\d+\.conv[12]", "ResNeXt blocks", 7),
    _ours(r"\d\.conv[12]", "bottlenecks with frozen batch norm", 7),
    _ours(r"encoder\.[026]|joint", "siamese network", 6, full=True),
    _ours(r"lift", "RNN cell", 6),
    _ours(r"first|second", "GCN", 9, full=True),
    _ours(r"(own|other)\d", "GraphSAGE", 9),
    _ours(r"first", "rolled MLP", 9),
    _ours(r"\d\.conv1", "SyncBatchNorm ResNet", 3, full=True),
    _ours(r".*\.(linear1|gate)", "FT-Transformer", 1),
    _ours(r"[03]", "casts between", 8),
    _ours(r"[03]", "RMSNorm by hand", 8, 10),
    _ours(r"[02]", "Snake activations", 10),
    _ours(r"hidden", "TabM", 10),
    _ours(r"first\.dense", "two modules that cannot be exported", 11),
    _ours(r"0|2\.fc1", "MLP under autocast", 10),
    _ours(r"0|3|7|10|15", "VGG"),
    _ours(r"0|\d+\.(squeeze|one|three)", "SqueezeNet"),
    _ours(r"[03]", "MLP-LayerNorm"),
    _ours(r"[049]", "CNN-BatchNorm-Flatten"),
    _ours(r"body\.\d\.conv1", "ResNet block"),
    _ours(r"body\.\d\.grow", "ConvNeXt-style block"),
    _ours(r"(down|bottom|merge)\.[03]|up", "U-Net-like skip", 7),
    _ours(r"experts\.\d\.(gate|up)", "Mixtral-style experts", 2, 11),
    _ours(r"hidden", "LSTM head"),
    _ours(r".*(text|vision).*mlp\.fc1", "CLIP"),
    _ours(r"[035]", "torch.nn.GLU", 1),
    _ours(r"both", "gated convolution", 1),
    _ours(r"both|one", "halves side by side", 1),
    _ours(r"conv[12]|hidden", "BatchNormAct2d", 3),
    _ours(r"conv[12]|hidden", "LayerNorm2d", 3),
    _ours(r"\d\.(expand|squeeze\.reduce|squeeze\.restore)", "EfficientNet blocks", 4),
    _ours(r"\d\.(expand|squeeze\.reduce|squeeze\.restore)", "gates of two poolings", 4, 6),
    _ours(r"1\.(conv1|squeeze\.reduce|squeeze\.restore)", "SE-ResNet block", 4),
    _ours(r"0\.(gate|up)", "one block three times", 6),
    _ours(r"a|b|c|joint", "twins", 6),
    _ours(r"first", "unrolled cell", 1, 6),
]  # fmt: skip

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in (*_TRANSFORMERS, *_TIMM, *_HAND)}
if len(ENTRIES) != len(_TRANSFORMERS) + len(_TIMM) + len(_HAND):
    raise ValueError("two models of the zoo have one name")
