"""Architectures of the small models."""

from __future__ import annotations

import torch
import transformers as tf
from torch import Tensor, nn


def planted(vocabulary: int) -> tf.LlamaForCausalLM:
    """Two layers, for the tasks with planted truth; they begin from copying."""
    config = tf.LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False, use_cache=False, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        for layer in model.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight.normal_(std=config.hidden_size**-0.5)
            begin_copying(
                layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.o_proj
            )
        model.lm_head.weight.copy_(model.model.embed_tokens.weight * config.hidden_size**-0.5)
    return model


def begin_copying(query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, scale: float = 1.0) -> None:
    """Initialise attention so that tokens attend to equal tokens and copy them.

    Copying needs this, and training would find it only after thousands of steps (mimetic initialization: Trockman and
    Kolter 2023).
    """
    query.weight.copy_(key.weight * scale)
    output.weight.copy_(value.weight.T)


def questions(vocabulary: int) -> tf.T5ForConditionalGeneration:
    """Encoder-decoder with gated GELU and relative positions.

    Initially, words of the answer attend to equal words of the context, and these to the second word before them, whose
    code they may be.
    """
    config = tf.T5Config(
        vocab_size=vocabulary, d_model=96, d_kv=48, num_heads=4, d_ff=256, num_layers=3, num_decoder_layers=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, use_cache=False, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    model = tf.T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.shared.weight[0] *= 0.1  # the decoder's start token: attention to the encoder has to outweigh it
        model.lm_head.weight.copy_(model.shared.weight * 2 * config.d_model**-0.5)
        for depth, block in enumerate(model.encoder.block):
            attention = block.layer[0].SelfAttention
            attention.o.weight.copy_(attention.v.weight.T * (0.3 if depth else 1.0))
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight[2] = 5.0
        for block in model.decoder.block:
            block.layer[0].SelfAttention.o.weight *= 0.1
            across = block.layer[1].EncDecAttention
            begin_copying(across.q, across.k, across.v, across.o, 2 * config.d_kv**-0.5)
    return model


def language(vocabulary: int) -> tf.LlamaForCausalLM:
    """Four layers, grouped-query attention."""
    config = tf.LlamaConfig(
        vocab_size=vocabulary, hidden_size=144, intermediate_size=384, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, use_cache=False, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config)


def experts(vocabulary: int) -> tf.MixtralForCausalLM:
    """Four experts, two for each token."""
    config = tf.MixtralConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.02, output_router_logits=False,
        max_position_embeddings=128, tie_word_embeddings=False, use_cache=False, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return tf.MixtralForCausalLM(config)


def vision() -> tf.ViTForImageClassification:
    """(B, 1, 32, 32) pixels, patches of four, ten classes."""
    config = tf.ViTConfig(
        image_size=32, patch_size=4, num_channels=1, hidden_size=64, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=10,
    )  # fmt: skip
    return tf.ViTForImageClassification(config)


class CNN(nn.Module):
    """(B, 1, 32, 32) pixels -> (B, 10) logits: convolutions with batch normalization, pooled three times, then averaged."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class LettersToPhonemes(nn.Module):
    """(N, L) letters and (N, T) phonemes said so far -> (N, T, phonemes) logits of the next one.

    All that the decoder knows of the letters is the encoder's last state: there is no attention.
    """

    def __init__(
        self, kind: type[nn.RNNBase], letters: int, phonemes: int, width: int = 128, embedded: int = 32
    ) -> None:
        super().__init__()
        self.letter, self.phoneme = nn.Embedding(letters + 1, embedded), nn.Embedding(phonemes + 1, embedded)
        self.encoder, self.decoder = kind(embedded, width, batch_first=True), kind(embedded, width, batch_first=True)
        self.head = nn.Linear(width, phonemes)

    def forward(self, letters: Tensor, said: Tensor) -> Tensor:
        _, state = self.encoder(self.letter(letters))
        return self.head(self.decoder(self.phoneme(said), state)[0])


class CRNN(nn.Module):
    """(B, 1, 32, W) pixels -> (B, W / 4, 27) logits of letters: convolutions, then an LSTM in both directions (Shi et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, pool in ((1, 16, (2, 2)), (16, 32, (2, 2)), (32, 48, (2, 1)), (48, 64, (2, 1))):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(pool)]
        self.features = nn.Sequential(*layers)
        self.narrow = nn.Linear(64 * 2, 64)
        self.recurrent = nn.LSTM(64, 64, bidirectional=True, batch_first=True)
        self.classifier = nn.Linear(128, 27)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).flatten(1, 2).transpose(1, 2)
        return self.classifier(self.recurrent(self.narrow(columns).relu())[0])


def speech(mels: int, frames: int, vocabulary: int) -> tf.WhisperForConditionalGeneration:
    """(B, mels, frames) log-mel -> words: two convolutions, an encoder, and a decoder that reads it."""
    config = tf.WhisperConfig(
        vocab_size=vocabulary, num_mel_bins=mels, max_source_positions=frames // 2, max_target_positions=8, d_model=64,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=192,
        decoder_ffn_dim=192, dropout=0.0, use_cache=False, pad_token_id=0, bos_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        begin_suppress_tokens=None,
    )  # fmt: skip
    return tf.WhisperForConditionalGeneration(config)


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def seeded(seed: int = 0) -> torch.Generator:
    """A seeded random generator."""
    return torch.Generator().manual_seed(seed)
