"""Tiny diffusion pipelines with random weights: the code path of real ones, and noise as images."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

SIDE = 32
"""Their native side; the sides of an image are multiples of 2."""


def stable_diffusion(**extras: Any) -> Any:
    """A Stable Diffusion of the first kind."""
    import diffusers
    import torch
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        unet=_unet(cross_attention_dim=16),
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=_tokenizer(),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        **{"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, **extras},
    )


def stable_diffusion_xl() -> Any:
    """A Stable Diffusion XL. Its decoder needs float32."""
    import diffusers
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    return diffusers.StableDiffusionXLPipeline(
        unet=_unet(
            cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        vae=_vae(force_upcast=True),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer_2=_tokenizer(),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
    )  # fmt: skip


def flux() -> Any:
    """A Flux: its latents are tokens, and it has no negative prompt."""
    import diffusers
    import torch
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(2, 2, 4),
        ),
        vae=_vae(shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=_tokenizer(),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        tokenizer_2=_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def inpainting() -> Any:
    """A Stable Diffusion for inpainting only."""
    import diffusers

    parts = stable_diffusion().components
    return diffusers.StableDiffusionInpaintPipeline(
        **{**parts, "unet": _unet(cross_attention_dim=16, in_channels=9)}, requires_safety_checker=False
    )


def deep() -> Any:
    """A Stable Diffusion whose latents stand for 8 x 8 pixels, as those of real ones do."""
    import diffusers

    blocks = {"block_out_channels": (8,) * 4, "down_block_types": ("DownEncoderBlock2D",) * 4}
    vae = _vae(**blocks, up_block_types=("UpDecoderBlock2D",) * 4)
    parts = {**stable_diffusion().components, "vae": vae}
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


def overflowing(part: str) -> Any:
    """A Stable Diffusion of which one part, `vae` or `unet`, returns NaN, as where float16 is too small for it."""
    pipeline = stable_diffusion()
    model = getattr(pipeline, part)
    getattr(model, "decoder", model).conv_out.weight.data.fill_(float("nan"))
    return pipeline


def strict_checker() -> dict[str, Any]:
    """The parts of a Stable Diffusion whose safety checker flags every image."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tiny, "image_size": SIDE, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    checker.concept_embeds_weights.data.fill_(-10)
    size = {"shortest_edge": SIDE}
    processor = CLIPImageProcessor(size=size, crop_size={"height": SIDE, "width": SIDE})
    return {"safety_checker": checker, "feature_extractor": processor, "requires_safety_checker": True}


def save(pipeline: Any, folder: Path) -> Path:
    """The pipeline's files, in `folder`."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def random_diffusion(folder: Path) -> Path:
    """The files of a Stable Diffusion, in `folder`."""
    return save(stable_diffusion(), folder)


def save_adapter(pipeline: Any, folder: Path) -> Path:
    """A LoRA adapter with random weights for a pipeline that has a UNet, which is changed by this."""
    import diffusers
    import torch
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(1)
    unet = pipeline.unet
    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]), "made")
    layers = diffusers.utils.convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name="made"))
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
    return folder


def _unet(**options: Any) -> Any:
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **{"in_channels": 4, **options},
    )  # fmt: skip


def _vae(**options: Any) -> Any:
    import diffusers

    two_blocks = {
        "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    return diffusers.AutoencoderKL(norm_num_groups=4, latent_channels=4, sample_size=SIDE, **{**two_blocks, **options})


def _text_config() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)
