"""Yours: a tiny random pipeline, which the tests load as a real one: no download, no GPU."""

import string
from pathlib import Path

import diffusers
import pytest
import torch
import transformers


def save_pipeline(folder: Path) -> None:
    """Save a pipeline of the default model's kind, with random weights, half a megabyte, its pictures noise."""
    torch.manual_seed(0)
    vocabulary = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    start, end = len(vocabulary), len(vocabulary) + 1
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer({word: i for i, word in enumerate(vocabulary)}, [], model_max_length=77)
    reader = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=reader.hidden_size,
        attention_head_dim=2,
        time_cond_proj_dim=8,
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2.to_v" in name or "cond_proj" in name:
                weight *= 10  # random weights say little of the prompt and the guidance: let the picture show them
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),  # four: a latent is an eighth as wide as its picture, as in the real ones
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    diffusers.LatentConsistencyModelPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(reader),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a pipeline; return its folder."""
    folder = tmp_path_factory.mktemp("model")
    save_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def worker_env(model: Path) -> dict[str, str]:
    """Have the workers load that pipeline."""
    return {"MODEL_ID": str(model)}
