"""Refining a trained Transformer: attention to state space layers, as an ordinary Hugging Face model.

Importing this package registers `MarConfig`, `MarModel` and `MarForCausalLM`, `MarVisionConfig`,
`MarVisionModel` and `MarForImageClassification` with transformers' Auto classes.
"""

from marsnn.errors import MissingDependencyError

try:
    import transformers  # noqa: F401
except ImportError as error:
    raise MissingDependencyError("transformers", "hf") from error

from marsnn.refine.alignment import AlignConfig, Aligned, align
from marsnn.refine.cache import MarCache
from marsnn.refine.calibration import add_spikes, firing_rates, sparsify
from marsnn.refine.config import MarConfig, MarVisionConfig
from marsnn.refine.decode import Choice, prepare, release
from marsnn.refine.export import block_inputs, block_network, ffn_inputs, ffn_network
from marsnn.refine.int8 import int8_weights
from marsnn.refine.latency import LatencyBudget, LatencyReport
from marsnn.refine.learning import LearnConfig, learn
from marsnn.refine.lora import add_lora, merge_lora
from marsnn.refine.model import MarForCausalLM, MarModel
from marsnn.refine.pipeline import RefineConfig, refine
from marsnn.refine.planner import Plan, plan
from marsnn.refine.pretraining import PretrainConfig, pretrain
from marsnn.refine.pruning import prune
from marsnn.refine.recipe import Recipe, distill, load_recipe
from marsnn.refine.sbds import SbdsLoss, sbds_head_loss, sbds_loss
from marsnn.refine.teacher_cache import TeacherCache
from marsnn.refine.trainer import MarTrainer, SbdsConfig
from marsnn.refine.transfer import convert
from marsnn.refine.vision import MarForImageClassification, MarVisionModel

__all__ = [
    "AlignConfig",
    "Aligned",
    "Choice",
    "LatencyBudget",
    "LatencyReport",
    "LearnConfig",
    "MarCache",
    "MarConfig",
    "MarForCausalLM",
    "MarForImageClassification",
    "MarModel",
    "MarTrainer",
    "MarVisionConfig",
    "MarVisionModel",
    "Plan",
    "PretrainConfig",
    "Recipe",
    "RefineConfig",
    "SbdsConfig",
    "SbdsLoss",
    "TeacherCache",
    "add_lora",
    "add_spikes",
    "align",
    "block_inputs",
    "block_network",
    "convert",
    "distill",
    "ffn_inputs",
    "ffn_network",
    "firing_rates",
    "int8_weights",
    "learn",
    "load_recipe",
    "merge_lora",
    "plan",
    "prepare",
    "pretrain",
    "prune",
    "refine",
    "release",
    "sbds_head_loss",
    "sbds_loss",
    "sparsify",
]
