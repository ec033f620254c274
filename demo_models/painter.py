"""A Stable Diffusion pipeline for diffusers that draws the digit in its prompt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, ViTForImageClassification

from demo_models.classifier import predicted_digits
from demo_models.digits import SIDE, WORDS, load_images, pixel_values, varied
from demo_models.training import train

AUTOENCODER_STEPS = 700
STEPS = 4500
BATCH = 64
VARIANTS = 8
"""Latents per image, each of a random variation."""
UNPROMPTED = 0.1
"""Share of training images without a prompt, for classifier-free guidance."""
PROMPTS = ("a handwritten {}", "a handwritten digit {}", "the digit {}", "a {}", "the number {}", "{}")
"""Prompts around a digit's name or number."""
TOKENS = 24
"""Maximal length of a prompt."""


def make(folder: Path, classifier: Path) -> dict[str, float]:
    """Train it, save it in `folder` in half precision, and return the share of 200 images that `classifier` recognises
    as the digit in the prompt."""
    torch.manual_seed(2)
    rng = random.Random(2)
    (images, digits), _ = load_images()
    vae = _autoencoder(images)
    latents = _latents(vae, images)
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 4, in_channels=4, out_channels=4, block_out_channels=(48, 96), layers_per_block=1,
        norm_num_groups=8, attention_head_dim=4, cross_attention_dim=64,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    tokenizer = word_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=TOKENS, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction", timestep_spacing="trailing",
    )  # fmt: skip
    both = torch.nn.ModuleList([unet, text_encoder])
    averaged = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def loss_of(step: int) -> Any:
        chosen = torch.randint(len(images), (BATCH,))
        clean = latents[torch.randint(VARIANTS, (BATCH,)), chosen]
        noise = torch.randn_like(clean)
        times = torch.randint(scheduler.config.num_train_timesteps, (BATCH,))
        texts = [_prompt(int(digit), rng) if rng.random() > UNPROMPTED else "" for digit in digits[chosen]]
        tokens = tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
        guess = unet(scheduler.add_noise(clean, noise, times), times, text_encoder(tokens).last_hidden_state).sample
        return functional.mse_loss(guess, scheduler.get_velocity(clean, noise, times))

    train(
        "painter", both.parameters(), loss_of, steps=STEPS, learning_rate=2e-3,
        after=lambda: averaged.update_parameters(both),
    )  # fmt: skip
    unet, text_encoder = averaged.module
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet.eval(), vae=vae, text_encoder=text_encoder.eval(), tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
    return {"images that the classifier recognises as the prompt's digit": prompt_accuracy(folder, classifier)}


def prompt_accuracy(folder: Path, classifier: Path, each: int = 20) -> float:
    """The share of images that `classifier` recognises, of `each` images per digit in 20 steps."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    model = ViTForImageClassification.from_pretrained(classifier)
    right = 0
    for digit, word in enumerate(WORDS):
        seed = torch.Generator().manual_seed(digit)
        generated = pipeline(
            [f"a handwritten {word}"] * each, num_inference_steps=20, generator=seed, output_type="pt"
        ).images
        right += int((predicted_digits(model, generated.mean(1, keepdim=True)) == digit).sum())
    return right / (each * len(WORDS))


def _autoencoder(images: Any) -> Any:
    """Images of 3 x 32 x 32 to latents of 4 x 8 x 8 and back; `scaling_factor` makes the latents' deviation 1."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 32), norm_num_groups=8, latent_channels=4, sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip

    def loss_of(step: int) -> Any:
        target = pixel_values(varied(images[torch.randint(len(images), (BATCH,))]))
        posterior = vae.encode(target).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        return functional.mse_loss(decoded, target) + 1e-4 * posterior.kl().mean() / 256

    train("autoencoder", vae.parameters(), loss_of, steps=AUTOENCODER_STEPS, learning_rate=2e-3)
    vae.eval().requires_grad_(False)
    with torch.inference_mode():
        spread = float(torch.cat([vae.encode(pixel_values(part)).latent_dist.mean for part in images.split(256)]).std())
    vae.register_to_config(scaling_factor=1 / spread)
    return vae


def _latents(vae: Any, images: Any) -> Any:
    """Latents of every image, `VARIANTS` times: float32 [VARIANTS, n, 4, 8, 8]."""
    with torch.inference_mode():
        return torch.stack([
            torch.cat([vae.encode(pixel_values(varied(part, 0.4))).latent_dist.mean for part in images.split(256)])
            for _ in range(VARIANTS)
        ]).clone() * vae.config.scaling_factor  # fmt: skip


def _prompt(digit: int, rng: random.Random) -> str:
    return rng.choice(PROMPTS).format(rng.choice((WORDS[digit], str(digit))))


def word_tokenizer() -> Any:
    """A tokenizer with one token per word of the prompts, and bytes for other text."""
    texts = [prompt.format(name) for prompt in PROMPTS for name in (*WORDS, *map(str, range(10)))]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False, min_frequency=1)
    )
    learned = [token for token, _ in sorted(bpe.get_vocab().items(), key=lambda item: item[1])]
    alphabet = [*letters, *(letter + "</w>" for letter in letters)]
    tokens = [*alphabet, *(token for token in learned if token not in set(alphabet))]
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    ends = ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate([*tokens, *ends])}, merges=merges, model_max_length=TOKENS
    )
