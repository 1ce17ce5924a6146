"""A folder of quantised weights in the format of compressed-tensors, which transformers and vLLM read."""

import json
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import check_target, folder, save_model
from .errors import MissingExtra
from .quantisation import Grid, Rounded
from .quantising import Plan, Quantised
from .recipe import plain
from .storage import QUANTISATION

__all__ = ["check_compressed", "save_compressed"]

_PAPERS = ("recipe.toml", "report.json", "allocation.json")  # how the model was pruned, and on which text


def check_compressed(path: Path, overwrite: bool = False) -> None:
    """Refuse before the work what `save_compressed` would refuse after it. Raises MissingExtra and ExportError."""
    if find_spec("compressed_tensors") is None:
        raise MissingExtra("packing quantised weights (compressed-tensors)", "quant")
    check_target(path, overwrite, 0)


def save_compressed(quantised: Quantised, path: Path, source: str = "", overwrite: bool = False) -> dict[str, Any]:
    """Codes packed into 32-bit words, scales, everything else as it is, and quantisation.json, whose content is given back.

    Where `source` is the folder of a pruned model, its recipe, report and allocation come along. Raises MissingExtra and ExportError.
    """
    check_compressed(path, overwrite)
    facts = _facts(quantised, source)
    with folder(path) as draft:
        save_model(quantised.model, quantised.tokenizer, draft, weights=_packed(quantised))
        file = draft / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**config, "quantization_config": _config(quantised)}, indent=2) + "\n", encoding="utf-8")
        for paper in (Path(source) / name for name in _PAPERS if source):
            if paper.is_file():
                shutil.copyfile(paper, draft / paper.name)
        facts["files"] = {file.name: file.stat().st_size for file in sorted(draft.glob("*.safetensors"))}
        (draft / QUANTISATION).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def _facts(quantised: Quantised, source: str) -> dict[str, Any]:
    plan: Plan = quantised.plan
    return {"source": source, "weights": str(plan), "method": plain(plan.method), "grid": plain(plan.grid),
            "calibration": None if plan.method.needs == "nothing" else plain(plan.calibration), "seed": plan.seed,
            "seconds": quantised.seconds, "matrices": [asdict(record) for record in quantised.records]}


def _packed(quantised: Quantised) -> dict[str, Tensor]:
    """All weights by the names that a checkpoint has; codes in place of the matrices."""
    weights: dict[str, Tensor] = dict(quantised.model.state_dict())
    for name, rounded in quantised.matrices.items():
        scales = weights.pop(f"{name}.weight").dtype
        weights |= {f"{name}.{part}": value for part, value in _parts(rounded, quantised.plan.grid, scales).items()}
    return weights


def _parts(rounded: Rounded, grid: Grid, scales: torch.dtype) -> dict[str, Tensor]:
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    return {"weight_packed": pack_to_int32(rounded.codes.cpu(), grid.bits), "weight_scale": rounded.scale.to(scales).cpu().contiguous(),
            "weight_shape": torch.tensor(rounded.codes.shape)}


def _config(quantised: Quantised) -> dict[str, Any]:
    """As compressed-tensors says it, of the block matrices by name."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    grid = quantised.plan.grid
    args = QuantizationArgs(num_bits=grid.bits, type="int", symmetric=True, strategy="group" if grid.group else "channel",
                            group_size=grid.group or None)
    linear = [name for name, module in quantised.model.named_modules() if isinstance(module, torch.nn.Linear)]
    config = QuantizationConfig(config_groups={"blocks": QuantizationScheme(targets=["Linear"], weights=args)}, format="pack-quantized",
                                quantization_status="compressed", ignore=[name for name in linear if name not in quantised.matrices])
    found: dict[str, Any] = config.model_dump(mode="json")
    return found
