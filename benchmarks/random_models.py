"""Models of the usual sizes with random weights: their outputs are meaningless, their cost is real."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.texts import WORDS


def bert_base(folder: Path, **sizes: Any) -> Path:
    """A sentence-transformer in the shape of BERT-base, 110 M parameters, with the vocabulary `texts.WORDS`."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    (folder / "bert").mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    config = BertConfig(**sizes)
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=512)
    model = SentenceTransformer(modules=[transformer, Pooling(config.hidden_size)], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


def vit_base(folder: Path, **sizes: Any) -> Path:
    """A classifier in the shape of ViT-B/16, 86 M parameters: 224 x 224 pixels, a thousand labels."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(num_labels=1000, **sizes)).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder


def stable_diffusion(folder: Path, channels: tuple[int, ...] = (320, 640, 1280, 1280), vae: int = 128) -> Path:
    """A pipeline in the shape of Stable Diffusion 1.5, 1.1 G parameters, in float16. `vae` is the width of its
    decoder's last block."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    letters = [*map(chr, range(97, 123))]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    decoder = len(channels)
    diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=channels
        ).half(),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(vae, 2 * vae, 4 * vae, 4 * vae), layers_per_block=2, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * decoder, up_block_types=("UpDecoderBlock2D",) * decoder,
        ).half(),
        text_encoder=CLIPTextModel(text).half(),
        tokenizer=CLIPTokenizer(
            vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
        ),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)  # fmt: skip
    return folder


def jpeg_files(count: int, size: tuple[int, int]) -> list[bytes]:
    """Images of smooth random colours, as JPEG files."""
    import io

    from PIL import Image

    generator = random.Random(0)
    files = []
    for _ in range(count):
        small = Image.frombytes("RGB", (16, 12), generator.randbytes(16 * 12 * 3))
        file = io.BytesIO()
        small.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files
