"""A folder whose weights take few bytes where many are zero: for the disk and the network, as in memory they are dense again."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import sparse
from ..checkpoint import check_target, folder, save_model
from ..errors import ExportError
from ..modelling import MODELLING
from ..traits import model_bytes
from . import Savable

__all__ = ["Sparse"]

_LOADER = '''

class SparseModel(PrunedModel):
    @classmethod
    def from_pretrained(cls, folder, *args, config=None, **settings):
        """The dense weights are put together first; `transformers` does the rest."""
        from safetensors import safe_open
        from transformers.utils import cached_file

        where = {{key: settings.pop(key) for key in ("revision", "cache_dir", "token") if key in settings}}
        file = cached_file(folder, FILE, **where)
        with safe_open(file, framework="pt") as data:
            weights = expand({{name: data.get_tensor(name) for name in data.keys()}}, data.metadata()["packed"])
        settings.pop("adapter_kwargs", None)
        settings["dtype"] = settings.pop("torch_dtype", settings.get("dtype")) or {dtype}
        return super().from_pretrained(None, *args, config=config, state_dict=weights, **settings)
'''


@dataclass(frozen=True)
class Sparse:
    """Bit masks and compressed planes of what is not 0 (`sparse.safetensors`), opened by `transformers` with trust_remote_code
    and by nothing else: without its code, loading fails.
    """

    overwrite: bool = False  # replace files in a folder that is not empty

    def check(self, pruned: Savable, path: Path) -> None:
        check_target(path, self.overwrite, 2 * model_bytes(pruned.model))

    def save(self, pruned: Savable, path: Path) -> None:
        self.check(pruned, path)
        with folder(path) as draft:
            save_model(pruned.model, pruned.tokenizer, draft, "1000GB", own_code=True)
            _compact(draft, str(pruned.model.dtype))


def _compact(draft: Path, dtype: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    whole = draft / "model.safetensors"
    with safe_open(whole, framework="pt") as data:
        packed, told = sparse.pack({name: data.get_tensor(name) for name in data.keys()})  # noqa: SIM118
    save_file(packed, draft / sparse.FILE, metadata={"packed": json.dumps(told)})
    before, after = whole.stat().st_size, (draft / sparse.FILE).stat().st_size
    if after >= before:
        raise ExportError(f"format 'sparse': would take {after / 2**20:.1f} MiB, the dense file {before / 2**20:.1f} MiB: too few weights "
                          "are 0. Use format 'huggingface'.")
    whole.unlink()
    code = (draft / MODELLING).read_text(encoding="utf-8")
    text = inspect.getsource(sparse)
    body = text[text.index("import json") :].replace('__all__ = ["FILE", "expand", "pack"]\n', "")
    (draft / MODELLING).write_text(f"{code}\n\n{body}{_LOADER.format(dtype=dtype)}", encoding="utf-8")
    file = draft / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = {key: value.replace(".PrunedModel", ".SparseModel") for key, value in config["auto_map"].items()}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
