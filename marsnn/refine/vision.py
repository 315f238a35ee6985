"""`MarForImageClassification`: a Vision Transformer with state space layers in the place of attention.

The layers are those of the language models; here are what stands before and behind them, and which weight of
a ViTForImageClassification goes where.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTEmbeddings
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from marsnn.errors import InputError
from marsnn.linear import Linear
from marsnn.refine.config import MarVisionConfig
from marsnn.refine.modality import Images
from marsnn.refine.model import MarDecoderLayer, MarPreTrainedModel, norm_of

NAMES = (
    ("vit.embeddings.", "model.embeddings."),
    ("vit.layers.", "model.layers."),
    ("vit.layernorm.", "model.norm."),
    (".layernorm_before.", ".input_layernorm."),
    (".layernorm_after.", ".post_attention_layernorm."),
    (".attention.", ".self_attn."),
    (".mlp.fc1.", ".mlp.up_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
)
"""Parts of weights' names: ViT's, ours."""


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a ViTForImageClassification under our names; ours stay as they are."""
    found = {}
    for name, weight in weights.items():
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)
        found[name] = weight
    return found


class MarVisionPreTrainedModel(MarPreTrainedModel):
    """What the stack and the classifier share."""

    config: MarVisionConfig
    config_class = MarVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules: ClassVar = ["ViTEmbeddings", "MarDecoderLayer"]
    _input_embed_layer = "patch_embeddings"
    _is_stateful = False

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViTEmbeddings):
            for parameter in (module.cls_token, module.position_embeddings):
                init.trunc_normal_(parameter, mean=0.0, std=self.config.initializer_range)


class MarVisionModel(MarVisionPreTrainedModel):
    """Embeddings of patches, layers and the last norm: images [B, C, H, W] to hidden states [B, L, D].

    L counts the patches and the class token in front of them.
    """

    def __init__(self, config: MarVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList([MarDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = norm_of(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Every layer sees every token: there is no mask.

        Raises:
            InputError: images of another size.
        """
        Images(self.config).check(pixel_values)
        hidden_states = self.embeddings(pixel_values.to(self.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=None, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class MarForImageClassification(MarVisionPreTrainedModel):
    """The classifier: calls and outputs are those of ViTForImageClassification.

    Not taken over: interpolated positions for images of other sizes, and dropout but attention's.
    """

    def __init__(self, config: MarVisionConfig) -> None:
        super().__init__(config)
        if config.num_labels < 1:
            raise InputError("the model has no classes (num_labels is 0), so nothing says what it predicts")
        self.num_labels = config.num_labels
        self.model = MarVisionModel(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Images [B, C, H, W] to logits [B, classes], and the loss where labels [B] are given."""
        outputs = self.model(pixel_values, **kwargs)
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


AutoModel.register(MarVisionConfig, MarVisionModel, exist_ok=True)
AutoModelForImageClassification.register(MarVisionConfig, MarForImageClassification, exist_ok=True)
