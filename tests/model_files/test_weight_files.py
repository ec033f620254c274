"""The choice of weights, on lists of files as repositories of these kinds have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.memory_check import weights_memory_bytes
from rbee_serve.model_files.resolve import prepare, resolve, weights_bytes
from rbee_serve.model_files.weight_files import refuse_mistral_layout, weights_in, weights_to_load
from rbee_serve.state import LoadProgress
from tests.model_files.tiny_models import entry, model_folder, safetensors_bytes


def in_shards(name: str, count: int, variant: str = "") -> list[str]:
    return [f"{name}{variant}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def both(*names: str) -> list[str]:
    return [f"{name}{variant}.safetensors" for name in names for variant in (".fp16", "")]


SDXL_PARTS = (
    "text_encoder/model", "text_encoder_2/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model",
)  # fmt: skip


class Repository(NamedTuple):
    """The files of a repository, and those to load in their own precision and for a dtype."""

    files: list[str]
    plain: list[str]
    dtype: str = "float16"
    for_dtype: list[str] | None = None
    variant: str | None = None
    """The variant for the dtype."""


REPOSITORIES = {
    "one file beside a pickle": Repository(
        ["config.json", "model.safetensors", "pytorch_model.bin"], ["model.safetensors"]
    ),
    "sdxl-turbo: every part twice, and twice as one file": Repository(
        ["model_index.json", "sd_xl_turbo_1.0.safetensors", "sd_xl_turbo_1.0_fp16.safetensors", *both(*SDXL_PARTS)],
        [f"{part}.safetensors" for part in SDXL_PARTS],
        for_dtype=[f"{part}.fp16.safetensors" for part in SDXL_PARTS],
        variant="fp16",
    ),
    "sdxl-turbo in bfloat16, for which there is no variant": Repository(
        ["model_index.json", *both(*SDXL_PARTS)],
        [f"{part}.safetensors" for part in SDXL_PARTS],
        dtype="bfloat16",
    ),
    "whisper-large-v3: half precision, and float32 in shards beside it": Repository(
        [
            "model.safetensors",
            *in_shards("model", 2, ".fp32"),
            "model.safetensors.index.fp32.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.fp32.json",
            "flax_model.msgpack",
        ],
        ["model.safetensors"],
    ),
    "SmolVLM2: float32 in shards": Repository(
        [*in_shards("model", 2), "model.safetensors.index.json", "onnx/vision_encoder.onnx"], in_shards("model", 2)
    ),
    "half precision only": Repository(
        ["model.fp16.safetensors"],
        ["model.fp16.safetensors"],
        dtype="float32",
        for_dtype=["model.fp16.safetensors"],
        variant="fp16",
    ),
    "half precision of some parts only": Repository(
        ["model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/model.safetensors"],
        ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/model.safetensors"],
        variant="fp16",
    ),
    "both precisions of one part, and half precision only of another": Repository(
        ["model_index.json", "text_encoder/model.fp16.safetensors", *both("unet/diffusion_pytorch_model")],
        ["text_encoder/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"],
        dtype="auto",
        variant="fp16",
    ),
    "two precisions without a plain form": Repository(
        ["model.bf16.safetensors", "model.fp16.safetensors"],
        ["model.fp16.safetensors"],
        dtype="bfloat16",
        for_dtype=["model.bf16.safetensors"],
        variant="bf16",
    ),
    "weights without the moving average beside those with it": Repository(
        [
            "model_index.json",
            *both("unet/diffusion_pytorch_model"),
            "v1-5-pruned.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "v1-5-pruned-emaonly.safetensors",
        ],
        ["unet/diffusion_pytorch_model.safetensors"],
        for_dtype=["unet/diffusion_pytorch_model.fp16.safetensors"],
        variant="fp16",
    ),
    "one file beside shards that an index names": Repository(
        ["model.safetensors", *in_shards("model", 3), "model.safetensors.index.json"], in_shards("model", 3)
    ),
    "one file beside shards without an index": Repository(
        ["model.safetensors", *in_shards("model", 3)], ["model.safetensors"]
    ),
    "shards of a variant, by the newer rule and by the older one": Repository(
        [
            "model_index.json",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            *in_shards("transformer/diffusion_pytorch_model", 2),
            "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
            *in_shards("transformer/diffusion_pytorch_model", 2, ".fp16"),
            "text_encoder/model-00001-of-00001.fp16.safetensors",
            "text_encoder/model.safetensors",
        ],
        ["text_encoder/model.safetensors", *in_shards("transformer/diffusion_pytorch_model", 2)],
        for_dtype=[
            "text_encoder/model-00001-of-00001.fp16.safetensors",
            *in_shards("transformer/diffusion_pytorch_model", 2, ".fp16"),
        ],
        variant="fp16",
    ),
    "Stable Diffusion 3.5: text encoders of another program in a folder that is no part": Repository(
        [
            "model_index.json",
            "sd3.5_large.safetensors",
            "text_encoders/clip_g.safetensors",
            "text_encoders/t5xxl_fp16.safetensors",
            "text_encoder/model.safetensors",
            "transformer/diffusion_pytorch_model.safetensors",
        ],
        ["text_encoder/model.safetensors", "transformer/diffusion_pytorch_model.safetensors"],
    ),
    "a whole pipeline in one file only": Repository(
        ["model_index.json", "animagine-xl.safetensors"], ["animagine-xl.safetensors"]
    ),
    "Mistral: two layouts": Repository(
        ["consolidated.safetensors", *in_shards("model", 3), "model.safetensors.index.json", "tekken.json"],
        in_shards("model", 3),
    ),
    "Mistral's layout with a tokenizer of transformers": Repository(
        ["consolidated.safetensors", "params.json", "tokenizer.json"], ["consolidated.safetensors"]
    ),
    "gpt-oss: the same weights in folders of other programs": Repository(
        [*in_shards("model", 2), "model.safetensors.index.json", "original/model.safetensors", "metal/model.bin"],
        in_shards("model", 2),
    ),
    "CLIP for two libraries": Repository(["model.safetensors", "open_clip_model.safetensors"], ["model.safetensors"]),
    "OpenCLIP only": Repository(["open_clip_model.safetensors"], ["open_clip_model.safetensors"]),
    "a model of sentence-transformers with layers in folders": Repository(
        ["modules.json", "model.safetensors", "2_Dense/model.safetensors"],
        ["2_Dense/model.safetensors", "model.safetensors"],
    ),
    "adapters in folders": Repository(
        ["model.safetensors", "speech-lora/adapter_model.safetensors"],
        ["model.safetensors", "speech-lora/adapter_model.safetensors"],
    ),
    "dots in names that are no variants": Repository(
        ["Qwen2.5-7B.safetensors", "llama-v0.1-awq.safetensors", "part.one.safetensors", "part.two.safetensors"],
        ["Qwen2.5-7B.safetensors", "llama-v0.1-awq.safetensors", "part.one.safetensors", "part.two.safetensors"],
    ),
    "no weights": Repository(["config.json", "pytorch_model.bin"], []),
}


@pytest.mark.parametrize("repository", REPOSITORIES.values(), ids=REPOSITORIES)
def test_every_weight_is_loaded_once(repository: Repository) -> None:
    expected = {None: repository.plain, repository.dtype: repository.for_dtype or repository.plain}
    for dtype, names in expected.items():
        found = weights_to_load(repository.files, dtype=dtype)
        assert sorted(found.names) == sorted(names)
        assert found.missing == ()
        # As the same files in a folder, with the indexes that they would have.
        again = weights_to_load(repository.files, lambda name: contents(repository.files, name), dtype)
        assert sorted(again.names) == sorted(names)
        assert again.variant == found.variant
    assert weights_to_load(repository.files, dtype=repository.dtype).variant == repository.variant


def contents(files: list[str], name: str) -> Mapping[str, Any]:
    """A pipeline's index of the parts that end as theirs do, or the index of all shards with its variant."""
    if name == "model_index.json":
        folders = {file.partition("/")[0] for file in files if "/" in file} - {"text_encoders"}
        return {
            "_class_name": "Pipeline",
            "scheduler": ["diffusers", "Euler"],
            **{each: ["a", "B"] for each in folders},
        }
    stem, _, rest = name.partition(".safetensors.index")
    variant = rest.removesuffix(".json")
    shards = [file for file in files if file.startswith(f"{stem}{variant}-0")]
    return {"weight_map": {file: file.rpartition("/")[2] for file in shards}}


def test_only_parts_that_the_pipeline_names_are_loaded() -> None:
    files = ["model_index.json", "unet/model.safetensors", "extra/model.safetensors", "checker/model.safetensors"]
    index = {"unet": ["diffusers", "UNet"], "checker": [None, None], "_class_name": "Pipeline"}
    assert weights_to_load(files, lambda name: index).names == ("unet/model.safetensors",)


def test_an_index_says_which_of_several_shards_count_and_what_is_missing() -> None:
    shards = [*in_shards("model", 2), "model-00001-of-00003.safetensors", "extra.safetensors"]
    named = {"a": shards[0], "b": shards[1], "c": "mtp.safetensors"}
    found = weights_to_load([*shards, "model.safetensors.index.json"], lambda name: {"weight_map": named})
    assert (found.names, found.missing) == (tuple(shards[:2]), ("mtp.safetensors",))
    assert weights_to_load([*shards, "model.safetensors.index.json"]).names == tuple(sorted(shards))


def test_what_an_interrupted_download_lacks_is_known_where_no_weights_have_arrived() -> None:
    files = ["model_index.json", "unet/a.safetensors.index.json", "vae/diffusion_pytorch_model.safetensors"]
    files += ["transformer/diffusion_pytorch_model.safetensors.index.json"]
    named = in_shards("diffusion_pytorch_model", 2)
    pipeline = {part: ["diffusers", "Model"] for part in ("transformer", "vae")}
    found = weights_to_load(files, lambda name: {"weight_map": dict(enumerate(named)), **pipeline})
    assert found.missing == tuple(f"transformer/{name}" for name in named)


def test_a_name_of_an_index_that_leads_out_of_the_model_is_missing() -> None:
    files = ["model.safetensors", "model.safetensors.index.json"]
    found = weights_to_load(
        files, lambda name: {"weight_map": {"a": "../model.safetensors", "b": "/model.safetensors"}}
    )
    assert (found.names, found.missing) == ((), ("../model.safetensors", "/model.safetensors"))


def ignored(progress: LoadProgress) -> None:
    """Ignore the progress."""


def test_memory_and_disk_count_the_weights_that_are_loaded_once(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    alone = weights_memory_bytes(folder, "float16"), weights_bytes(folder)
    large = safetensors_bytes({"w": entry(0, 4000, (1000,), "F32")}, bytes(4000))
    for shard in in_shards("model", 2, ".fp32"):
        (folder / shard).write_bytes(large)
    index = {"weight_map": dict(zip("ab", in_shards("model", 2, ".fp32"), strict=True))}
    (folder / "model.safetensors.index.fp32.json").write_text(json.dumps(index))
    (folder / "consolidated.safetensors").write_bytes(large)
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(large)
    assert (weights_memory_bytes(folder, "float16"), weights_bytes(folder)) == alone
    assert resolve(f"file:{folder}", ignored).bytes_on_disk == alone[1]
    assert prepare(f"file:{folder}", ignored) == folder


def test_a_folder_with_one_variant_loads_beside_the_index_of_the_other(tmp_path: Path) -> None:
    part = model_folder(tmp_path / "unet")
    (part / "model.safetensors").rename(part / "model.fp16.safetensors")
    index = {"weight_map": dict(zip("ab", in_shards("model", 2), strict=True))}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet"]}')
    assert prepare(f"file:{tmp_path}", ignored, variant_for="float16") == tmp_path
    assert weights_in(tmp_path).variant == "fp16"


def test_a_model_in_mistral_s_layout_needs_a_tokenizer_of_transformers(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    shutil.move(folder / "model.safetensors", folder / "consolidated.safetensors")
    for name in ("params.json", "tekken.json"):
        (folder / name).write_text("{}")
    with pytest.raises(ConfigurationError, match=r"has Mistral's own files only .* choose a repository or revision"):
        prepare(f"file:{folder}", ignored)
    (folder / "tokenizer.json").write_text("{}")
    assert prepare(f"file:{folder}", ignored) == folder
    refuse_mistral_layout(["model.safetensors", "consolidated.safetensors"], "hf:org/name")
