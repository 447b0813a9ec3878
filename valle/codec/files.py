"""A codec in training as files: its configuration, and the folder that everybody opens."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from valle.utils.files import written_whole

SAVE_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def read_config(path: str | Path) -> Any:
    """The EncodecConfig of a config.json.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: No JSON, another kind of model, or sizes that do not go together.
    """
    from transformers import EncodecConfig

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration {path}: give the config.json of an EncodecModel")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): give a config.json") from error
    if fields.get("model_type") != "encodec":
        raise ValueError(
            f"{path} is of model_type {fields.get('model_type')!r}, expected 'encodec': only "
            "EnCodec can be trained from scratch"
        )
    config = EncodecConfig(**{k: v for k, v in fields.items() if k not in ("dtype", "torch_dtype")})
    check_sizes(config, str(path))
    return config


def check_sizes(config: Any, name: str) -> None:
    """Refuse sizes that would only fail, or round a quantizer away, later.

    Raises:
      ValueError: With what came and what to give.
    """
    size = config.codebook_size
    if size < 2 or not math.log2(size).is_integer():
        raise ValueError(f"{name}: codebook_size {size} must be a power of two, such as 1024")
    if config.codebook_dim != config.hidden_size:
        raise ValueError(
            f"{name}: codebook_dim {config.codebook_dim} must be hidden_size {config.hidden_size}: "
            "an EnCodec has no projection between them"
        )
    bits = config.frame_rate * math.log2(size)
    wanted = max(config.target_bandwidths) * 1000 / bits
    if wanted < 0.999 or abs(wanted - config.num_quantizers) > 0.15:
        raise ValueError(
            f"{name}: target_bandwidths {list(config.target_bandwidths)} kbit/s are "
            f"{wanted:.2f} quantizers of {bits / 1000:g} kbit/s, of which the model makes "
            f"{config.num_quantizers}: give {max(1, round(wanted)) * bits / 1000:g}"
        )


def stored_tensors(model: nn.Module, dtype: torch.dtype, exact: bool) -> dict[str, Tensor]:
    """Weights as they are stored.

    In float16, what only further training would read takes 8 bits. Left out altogether, embed_avg
    and cluster_size would make from_pretrained report them as missing; in 8 bits they keep it
    silent and the file small.

    Args:
      model: EncodecModel.
      dtype: Of the file.
      exact: Keep everything that decides tokens as precise as it is, whatever `dtype` says.
    """
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    if dtype == torch.float32:
        return {name: value.contiguous() for name, value in weights.items()}
    tensors = {}
    for name, value in weights.items():
        half = value.half().contiguous()
        if name.endswith("embed_avg"):
            tensors[name] = weights[name.replace("embed_avg", "embed")].to(torch.float8_e4m3fn)
        elif name.endswith("cluster_size"):
            tensors[name] = torch.ones_like(value).half()
        elif exact and not name.startswith("decoder.") and not torch.equal(half.float(), value):
            tensors[name] = value.contiguous()
        else:
            tensors[name] = half
    return tensors


def save_codec(
    model: Any, folder: Path, dtype: torch.dtype = torch.float32, exact: bool = False
) -> int:
    """Write config.json and model.safetensors, each under a temporary name first.

    The configuration names float32, so that from_pretrained computes in it whatever is stored.

    Args:
      model: EncodecModel.
      folder: Made if missing.
      dtype: float32 or float16, of the stored weights.
      exact: In float16 too, keep encoder and codebooks as they are, and so the tokens.

    Returns:
      Bytes of the weights.

    Raises:
      ValueError: If a weight is not finite in that type; nothing is written.
      OSError: It cannot be written; what was there before is untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = stored_tensors(model, dtype, exact)
    for name, value in tensors.items():
        if not value.float().isfinite().all():
            raise ValueError(
                f"weight {name} is not finite in {str(dtype).removeprefix('torch.')}: training "
                "has diverged, lower --lr"
            )
    weights = folder / "model.safetensors"
    with written_whole(weights) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, say; of no kind that anybody catches
            raise OSError(str(error)) from error
    fields = model.config.to_diff_dict()
    fields.pop("_name_or_path", None)
    fields.update(architectures=["EncodecModel"], dtype="float32")
    write_text(folder / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n")
    return weights.stat().st_size


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
