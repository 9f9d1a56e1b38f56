"""Names of the zoo's models, by library. Reading them imports no library."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent

MODELS: dict[str, tuple[str, ...]] = {
    "timm": (
        "vit",
        "convnext",
        "swin",
        "mobilenet",
        "efficientnet",
        "resnet_features",
        "mixer",
        "eva",
        "scripted_resnet",
        "own_autocast",
    ),
    "torchvision": (
        "retinanet",
        "faster_rcnn",
        "no_detections",
        "segmentation",
        "class_map",
        "video",
        "densenet",
        "shufflenet",
        "attention_fast_path",
        "two_heads",
    ),
    "transformers": (
        "gpt2",
        "bloom",
        "llama_with_cache",
        "llama_bf16",
        "llama_forbidden_words",
        "bert",
        "t5",
        "whisper",
        "wav2vec2",
        "clip",
        "mamba",
        "mixtral",
        "hifigan",
        "encodec",
    ),
    "diffusers": (
        "unet2d_condition",
        "unet2d",
        "vae_encode_object",
        "vae_decode",
        "dit",
        "vq_model",
        "controlnet",
        "flux",
        "prior",
    ),
    "monai": (
        "unet",
        "swin_unetr",
        "unetr",
        "vnet",
        "segresnet",
        "dynunet",
        "attention_unet",
        "spectral_discriminator",
        "old_spectral_discriminator",
        "diffusion_unet",
        "sampled_latent",
    ),
    "torch": ("modulated_generator", "lstm_tagger", "always_dropout", "boxes_and_scores"),
}
NAMES = tuple(f"{library}/{name}" for library, names in MODELS.items() for name in names)


def file_of(name: str) -> Path:
    """The file that defines the model called `library/model`."""
    return HERE / f"{name.partition('/')[0]}_models.py"


def reference_of(name: str) -> str:
    """How gpubench is told of the model."""
    return f"{file_of(name)}:{name.partition('/')[2]}"
