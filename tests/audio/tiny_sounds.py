"""Tiny text-to-audio models with random weights: the code path of real ones, and noise for a sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save_tiny_vits(folder: Path) -> None:
    """A VITS with three speakers, 16 kHz, that reads Latin letters."""
    import torch
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    letters = folder / "letters.json"
    letters.write_text(
        json.dumps({letter: number for number, letter in enumerate("_ abcdefghijklmnopqrstuvwxyz'-.,!?")})
    )
    VitsTokenizer(letters, language="eng", phonemize=False, pad_token="_", unk_token="_").save_pretrained(folder)
    torch.manual_seed(0)
    VitsModel(
        VitsConfig(
            vocab_size=34, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, flow_size=16,
            spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[8, 8], upsample_kernel_sizes=[16, 16],
            resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], prior_encoder_num_flows=1,
            prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1, duration_predictor_num_flows=1,
            duration_predictor_filter_channels=16, depth_separable_num_layers=1, num_speakers=3,
            speaker_embedding_size=8, sampling_rate=16000,
        )
    ).save_pretrained(folder)  # fmt: skip


def save_tiny_musicgen(folder: Path) -> None:
    """A MusicGen, 16 kHz and 100 tokens a second, that knows three words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        PreTrainedTokenizerFast,
        T5Config,
    )

    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "a", "slow", "song"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    specials: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **specials).save_pretrained(folder)
    codec = EncodecConfig(
        sampling_rate=16000, num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16,
        upsampling_ratios=[8, 5, 4], num_lstm_layers=1, normalize=False, use_causal_conv=False, target_bandwidths=[2.0],
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=32, max_position_embeddings=128, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2,
        hidden_size=16, num_codebooks=codec.num_quantizers, pad_token_id=32, bos_token_id=32,
    )  # fmt: skip
    text = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    torch.manual_seed(0)
    model = MusicgenForConditionalGeneration(MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder))
    model.generation_config.update(
        max_length=100, do_sample=True, guidance_scale=3.0, decoder_start_token_id=32, pad_token_id=32, bos_token_id=32
    )
    model.save_pretrained(folder)
