"""What a refinement of a model would cost per token, from its config.json alone: `marsnn energy --shape`.

No weight is made: parameters are counted on torch's meta device, operations from shapes, spikes from rates
that were measured on another model or are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from marsnn.checks import count
from marsnn.errors import FileError, InputError
from marsnn.files import read_json
from marsnn.refine.config import MarConfig, config_from
from marsnn.refine.model import MarForCausalLM
from marsnn.refine.planner import Budget
from marsnn.refine.shapes import TABLES, by_site, dense_of, measured_rates, priced
from marsnn.refine.sparsity import checked_keep

NAMED: dict[str, dict[str, int]] = {
    "llama-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
    "llama-13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40, "vocab_size": 32000, "max_position_embeddings": 4096,
    },
}  # fmt: skip
"""Sizes of Llama 2 (Touvron et al. 2023, arXiv 2307.09288, and its published configurations)."""


def load_shape(shape: str | Path) -> PreTrainedConfig:
    """A configuration: one of `NAMED`, a config.json, or a folder with one.

    Raises:
        FileError: no such file, or no configuration.
    """
    if str(shape) in NAMED:
        return LlamaConfig(**NAMED[str(shape)])
    path = Path(shape)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileError(f"{shape}: no such file; say {', '.join(NAMED)}, or the path of a config.json")
    raw = read_json(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise FileError(f"{path}: no configuration of a model (it names no model_type)")
    try:
        return AutoConfig.for_model(**raw)
    except InputError:
        raise
    except Exception as error:  # each configuration checks in its own way
        raise FileError(f"{path}: {str(error).splitlines()[0]}") from error


def estimate(
    shape: PreTrainedConfig,
    ssm: str = "all",
    keep: float = 0.4,
    steps: int = 6,
    rate: float | None = None,
    contexts: Sequence[int] = (256, 1024, 4096),
) -> dict[str, Any]:
    """Rows dense, SSM, SSM + sparse, SSM + sparse + ATMN; each by context and table.

    Args:
        shape: of a model whose layers are Llama's.
        ssm: a budget of layers: a number, "half", "all", "25%"; the last ones become state space layers.
        keep: share of activations before the second projection.
        steps: T of ATMN.
        rate: spikes per neuron and step at every site; None for those of SmolLM2-135M at that T.
        contexts: tokens that attention sees.

    Raises:
        InputError: a setting out of range, or layers that aren't Llama's.
    """
    dense = dense_of(config_from(shape))
    budget = Budget.parse(ssm, dense.num_hidden_layers)
    if budget.kind != "layers":
        raise InputError(f"a shape has no weights to score, so say how many layers, not {ssm!r}")
    layers = range(dense.num_hidden_layers - int(budget.value), dense.num_hidden_layers)
    checked_keep(keep)
    if not contexts:
        raise InputError("no contexts; say some numbers of tokens")
    for context in contexts:
        count("a context", context)
    if rate is not None and not 0 <= rate <= 1:
        raise InputError(f"a rate is a share of neurons and steps, 0 to 1, got {rate!r}")
    sparse = {"mode": "threshold", "keep": keep}
    spikes = {"neuron": "ATMN", "settings": {"steps": steps, "tau": 0.5, "fire_at": 0.5}}
    name = f"{len(layers)} SSM"
    configs = {"dense": dense, name: config_from(dense, layers)}
    if keep < 1:
        name += f" + FFN {keep:g}"
        configs[name] = config_from(dense, layers, sparsity=sparse)
    spiking = config_from(dense, layers, sparsity=sparse if keep < 1 else None, spikes=spikes)
    rates: Mapping[str, float] | float = measured_rates(spiking) if rate is None else float(rate)
    configs[f"{name} + ATMN T={steps}"] = spiking
    return {
        "rates": rates if isinstance(rates, float) else by_site(rates),
        "measured_rates": rate is None,
        "steps": steps,
        "rows": {name: _row(config, rates, contexts) for name, config in configs.items()},
    }


def _row(
    config: MarConfig, rates: Mapping[str, float] | float | None, contexts: Sequence[int]
) -> dict[str, Any]:
    with torch.device("meta"):
        parameters = sum(each.numel() for each in MarForCausalLM(config).parameters())
    return {
        "parameters": parameters,
        "contexts": {str(context): priced(config, context, rates) for context in contexts},
    }


def estimate_text(result: Mapping[str, Any], name: str) -> str:
    """A table for people."""
    rows = result["rows"]
    contexts = list(next(iter(rows.values()))["contexts"])
    width = max(map(len, rows)) + 2
    rates = result["rates"]
    told = f"{rates:g}" if isinstance(rates, float) else ", ".join(f"{k} {v:.3g}" for k, v in rates.items())
    lines = [
        f"{name}: energy of a token, ESTIMATED from its configuration, in mJ (share of the dense one at the",
        "same precision); memory traffic apart, in GB a token of fp32",
        "".ljust(width) + f"{'parameters':>12}" + "".join(f"{f'context {int(c):,}':>36}" for c in contexts),
        "".ljust(width + 12) + f"{'fp32':>15}{'int8':>15}{'GB':>6}" * len(contexts),
    ]
    for row_name, row in rows.items():
        line = row_name.ljust(width) + f"{row['parameters'] / 1e9:10.2f} B"
        for context in contexts:
            each = row["contexts"][context]
            for table in TABLES:
                line += f"{each[f'{table} nJ'] / 1e6:.3g} ({each[f'{table} ratio']:.3f})".rjust(15)
            line += f"{each['bytes_fp32'] / 1e9:6.1f}"
        lines.append(line)
    lines.append(
        f"assumed, T = {result['steps']}: spikes per neuron and step {told}"
        + (", as measured on SmolLM2-135M" if result["measured_rates"] else "")
        + "; a shape has no quality"
    )
    return "\n".join(lines) + "\n"
