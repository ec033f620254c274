"""Tiny text-to-audio models with random weights, which generate noise by the code path of real models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any


def save_tiny_vits(folder: Path) -> None:
    """A VITS with three speakers, 16 kHz, for Latin letters."""
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


def save_tiny_musicgen(folder: Path, channels: int = 1) -> None:
    """A MusicGen, 16 kHz and 50 tokens/s, with a vocabulary of three words, mono or stereo."""
    import torch
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    _word_tokenizer("a slow song").save_pretrained(folder)
    codec = EncodecConfig(
        sampling_rate=16000, num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16,
        upsampling_ratios=[8, 8, 5], num_lstm_layers=1, normalize=False, use_causal_conv=False, target_bandwidths=[1.0],
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=32, max_position_embeddings=1024, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2,
        hidden_size=16, num_codebooks=channels * codec.num_quantizers, audio_channels=channels,
        pad_token_id=32, bos_token_id=32,
    )  # fmt: skip
    text = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    torch.manual_seed(0)
    model = MusicgenForConditionalGeneration(MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder))
    _fill_codebooks(model.audio_encoder)
    model.generation_config.update(
        max_length=1000, do_sample=True, guidance_scale=3.0, decoder_start_token_id=32, pad_token_id=32, bos_token_id=32
    )
    model.save_pretrained(folder)


def save_tiny_speecht5(folder: Path, vocoder: Path) -> None:
    """A SpeechT5 for Latin letters with speaker embeddings of 8 numbers, and a vocoder of 16 kHz in another folder."""
    import sentencepiece
    import torch
    from transformers import (
        SpeechT5Config,
        SpeechT5ForTextToSpeech,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        SpeechT5Tokenizer,
    )

    letters = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abcdefghijklmnopqrstuvwxyz'-.,!?"] * 2), model_writer=letters, model_type="char",
        vocab_size=64, hard_vocab_limit=False, bos_id=0, pad_id=1, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    (folder / "spm_char.model").write_bytes(letters.getvalue())
    SpeechT5Tokenizer(str(folder / "spm_char.model")).save_pretrained(folder)
    torch.manual_seed(0)
    model = SpeechT5ForTextToSpeech(
        SpeechT5Config(
            vocab_size=64, hidden_size=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, num_mel_bins=8, speaker_embedding_dim=8,
            speech_decoder_prenet_units=16, speech_decoder_postnet_layers=2, speech_decoder_postnet_units=16,
        )
    )  # fmt: skip
    torch.nn.init.constant_(model.speech_decoder_postnet.prob_out.bias, -10)  # it stops at once
    model.save_pretrained(folder)
    SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8, upsample_initial_channel=16, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], initializer_range=0.2,
        )
    ).save_pretrained(vocoder)  # fmt: skip


def save_tiny_bark(folder: Path) -> None:
    """A Bark, 24 kHz, with a vocabulary of four words and the voice preset `anna`. A sentence takes at most 0.4 s."""
    import numpy as np
    import torch
    from transformers import (
        BarkCoarseConfig,
        BarkConfig,
        BarkFineConfig,
        BarkModel,
        BarkProcessor,
        BarkSemanticConfig,
        EncodecConfig,
        GenerationConfig,
    )

    prompts = {
        "semantic_prompt": np.arange(20),
        "coarse_prompt": np.ones((2, 30), int),
        "fine_prompt": np.ones((4, 30), int),
    }
    for name, prompt in prompts.items():
        np.save(folder / f"anna_{name}.npy", prompt)
    presets = {"repo_or_path": str(folder), "anna": {name: f"anna_{name}.npy" for name in prompts}}
    BarkProcessor(_word_tokenizer("hello there and again")).save_pretrained(folder)
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(presets))
    size: dict[str, int] = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "block_size": 128}
    codec = EncodecConfig(
        sampling_rate=24000, num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16, num_lstm_layers=1,
        normalize=False, target_bandwidths=[1.5],
    )  # fmt: skip
    # Ids below 40 are semantic tokens, 40 ends them; the ids of two coarse codebooks of 32 follow.
    torch.manual_seed(0)
    model = BarkModel(
        BarkConfig(
            semantic_config=BarkSemanticConfig(input_vocab_size=64, output_vocab_size=64, **size),
            coarse_acoustics_config=BarkCoarseConfig(input_vocab_size=106, output_vocab_size=106, **size),
            fine_acoustics_config=BarkFineConfig(
                input_vocab_size=33, output_vocab_size=33, n_codes_total=codec.num_quantizers, **size
            ),
            codec_config=codec,
        )
    )
    _fill_codebooks(model.codec_model)
    model.generation_config = GenerationConfig(
        semantic_config={
            "eos_token_id": 40, "semantic_vocab_size": 40, "text_encoding_offset": 41, "text_pad_token": 62,
            "semantic_infer_token": 63, "max_input_semantic_length": 16, "max_new_tokens": 20, "do_sample": True,
        },
        coarse_acoustics_config={
            "coarse_semantic_pad_token": 104, "coarse_infer_token": 105, "max_coarse_input_length": 16,
            "max_coarse_history": 30, "sliding_window_len": 20, "do_sample": True,
        },
        fine_acoustics_config={"max_fine_history_length": 32, "max_fine_input_length": 64, "n_fine_codebooks": 4},
        codebook_size=32, sample_rate=24000,
    )  # fmt: skip
    model.save_pretrained(folder)


def _word_tokenizer(words: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words.split()])}
    plain = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    specials: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **specials)


def _fill_codebooks(codec: Any) -> None:
    """They are zero in a new codec, so all tokens would decode to the same samples."""
    for name, codebook in codec.named_buffers():
        if name.endswith(".embed"):
            codebook.normal_()
