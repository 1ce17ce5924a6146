"""llama.cpp's own library, run in a process of its own, as it ends its process when a file is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RUN = """
import json, sys, xllamacpp as x
path, asked = sys.argv[1], json.loads(sys.argv[2])
settings = x.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = path, 256, 1, False
settings.cache_type_k = settings.cache_type_v = x.ggml_type.GGML_TYPE_F32
settings.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
settings.cpuparams.n_threads = 1
json.dump(x.Server(settings).handle_completions(asked), open(sys.argv[3], "w"))
"""


def continued(file: Path, prompt: list[int], count: int, **settings: Any) -> list[dict[str, Any]]:
    """What llama.cpp says after a prompt, greedily: per token its id, and the logarithms of the probabilities of all others."""
    asked = {"prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False, "ignore_eos": True,
             **settings}
    answer = file.with_suffix(".json")
    command = [sys.executable, "-c", RUN, str(file), json.dumps(asked), str(answer)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(answer.read_text())
    choices: list[dict[str, Any]] = (found[0] if isinstance(found, list) else found)["choices"][0]["logprobs"]["content"]
    return choices
