"""BEiT-3 (Wang et al. 2022) as Hugging Face models: a Multiway Transformer with heads for images and for questions.

Written after the paper and the published code (github.com/microsoft/unilm, ``beit3``, on torchscale), with the names
that its checkpoints have. ``A`` is the expert of image patches and ``B`` that of words; only softmax attention sees
both. The paper shares the projections of attention between the two, the published code does not, and neither does this.
A model for images alone has no ``B``. Left out: masked patches, relative positions and stochastic depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention, SequenceClassifierOutput

from qnas_plugin.errors import DataError

FIRST_POSITION = 2
"""Of the rows of a table of positions; fairseq keeps those before it for padding."""

Streams = tuple[torch.Tensor, ...]
"""What stands for patches, and for words where there are some, each ``(b, length, numbers)``."""


class Beit3Config(PretrainedConfig):  # type: ignore[misc]
    """Sizes of a BEiT-3; those of the base model where nothing is said.

    Args:
        vocab_size: Tokens.
        hidden_size: Width of the residual stream.
        num_hidden_layers: Layers.
        num_attention_heads: Heads of a layer.
        intermediate_size: Width of the feed-forward part of each expert.
        hidden_act: Its activation.
        hidden_dropout_prob: Dropout after the embeddings and after both parts of a layer.
        image_size: Height and width in pixels.
        patch_size: Of a patch.
        num_channels: Of an image.
        max_position_embeddings: Rows of the table of word positions; a question has two tokens less at most.
        layer_norm_eps: Of all norms.
        initializer_range: Standard deviation of random weights.
        options: Those of every Hugging Face configuration: labels, architectures, ...
    """

    model_type = "beit3"

    def __init__(
        self,
        vocab_size: int = 64010,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.0,
        image_size: int = 224,
        patch_size: int = 16,
        num_channels: int = 3,
        max_position_embeddings: int = 1024,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.max_position_embeddings = max_position_embeddings
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range

    @property
    def image_tokens(self) -> int:
        """Patches of an image and the class token before them."""
        patches: int = (self.image_size // self.patch_size) ** 2
        return patches + 1


def part(hidden: torch.Tensor, image_tokens: int | None) -> Streams:
    """Patches and words; patches alone with None."""
    return (hidden,) if image_tokens is None else (hidden[:, :image_tokens], hidden[:, image_tokens:])


def join(streams: Streams) -> torch.Tensor:
    """Patches and words in one tensor."""
    return torch.cat(streams, 1) if len(streams) > 1 else streams[0]


class Multiway(nn.Module):
    """One module for patches and another one for words.

    Args:
        make: Makes one.
        words: Whether there are words.
    """

    def __init__(self, make: Callable[[], nn.Module], words: bool) -> None:
        super().__init__()
        self.A = make()
        self.B = make() if words else None

    def forward(self, streams: Streams) -> Streams:
        experts = (self.A,) if self.B is None else (self.A, self.B)
        return tuple(expert(stream) for expert, stream in zip(experts, streams, strict=True))


class Attention(nn.Module):
    """Self-attention over patches and words together, with a norm before the last projection."""

    def __init__(self, config: Any, words: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.all_head_size = width
        self.head_size = width // config.num_attention_heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (
            Multiway(lambda: nn.Linear(width, width), words) for _ in range(4)
        )
        self.inner_attn_ln = Multiway(lambda: nn.LayerNorm(width, eps=config.layer_norm_eps), words)
        self.image_tokens = config.image_tokens if words else None

    def forward(self, streams: Streams, bias: torch.Tensor | None) -> Streams:
        """Adds ``bias``, ``(b, 1, 1, length)``, to what the softmax is taken of."""
        query, key, value = (self._heads(project(streams)) for project in (self.q_proj, self.k_proj, self.v_proj))
        scores = query @ key.transpose(-1, -2) * self.head_size**-0.5
        if bias is not None:
            scores = scores + bias
        context = (scores.softmax(-1) @ value).transpose(1, 2)
        joined = context.reshape(*context.shape[:2], self.all_head_size)
        output: Streams = self.out_proj(self.inner_attn_ln(part(joined, self.image_tokens)))
        return output

    def _heads(self, streams: Streams) -> torch.Tensor:
        """``(b, heads, length, head size)``."""
        joined = join(streams)
        return joined.view(*joined.shape[:2], self.num_attention_heads, self.head_size).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a norm before the second."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.ffn_layernorm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.fc2(self.ffn_layernorm(self.activation(self.fc1(hidden))))
        return output


class Layer(nn.Module):
    """Attention and feed-forward experts, each after a norm and beside an identity."""

    def __init__(self, config: Any, words: bool) -> None:
        super().__init__()
        self.self_attn = Attention(config, words)
        self.self_attn_layer_norm, self.final_layer_norm = (
            Multiway(lambda: nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps), words) for _ in range(2)
        )
        self.ffn = Multiway(lambda: FeedForward(config), words)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.image_tokens = config.image_tokens if words else None

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``hidden`` is one tensor, patches first, so that a subnet can leave the layer out."""
        streams = part(hidden, self.image_tokens)
        streams = self._add(streams, self.self_attn(self.self_attn_layer_norm(streams), bias))
        streams = self._add(streams, self.ffn(self.final_layer_norm(streams)))
        return join(streams)

    def _add(self, streams: Streams, others: Streams) -> Streams:
        return tuple(stream + self.dropout(other) for stream, other in zip(streams, others, strict=True))


class ImageEmbedding(nn.Module):
    """Patches to vectors, after a class token."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.proj(pixel_values).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], 1)


class Encoder(nn.Module):
    """The layers, with learned positions before them."""

    def __init__(self, config: Any, words: bool) -> None:
        super().__init__()
        tables = {"A": nn.Embedding(config.image_tokens + FIRST_POSITION, config.hidden_size)}
        if words:
            tables["B"] = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embed_positions = nn.ModuleDict(tables)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(Layer(config, words) for _ in range(config.num_hidden_layers))
        self.image_tokens = config.image_tokens

    def forward(
        self, patches: torch.Tensor, words: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Padding of the words, 0 in the mask ``(b, length)``, is seen by nothing."""
        hidden: torch.Tensor = patches + self._positions("A", None)
        bias = None
        if words is not None:
            assert attention_mask is not None
            mask = attention_mask.to(words.dtype)
            words = (words + self._positions("B", words.shape[1])) * mask[:, :, None]
            bias = (1 - mask) * torch.finfo(words.dtype).min
            bias = nn.functional.pad(bias, (self.image_tokens, 0))[:, None, None]
            hidden = torch.cat([hidden, words], 1)
        hidden = self.dropout(hidden)
        for layer in self.layers:
            hidden = layer(hidden, bias)
        return hidden

    def _positions(self, expert: str, length: int | None) -> torch.Tensor:
        table: Any = self.embed_positions[expert]
        last = None if length is None else length + FIRST_POSITION
        positions: torch.Tensor = table.weight[FIRST_POSITION:last]
        return positions


class Beit3(nn.Module):
    """Embeddings and encoder."""

    def __init__(self, config: Any, words: bool) -> None:
        super().__init__()
        self.text_embed = nn.Embedding(config.vocab_size, config.hidden_size) if words else None
        self.vision_embed = ImageEmbedding(config)
        self.encoder = Encoder(config, words)

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``(b, patches and words, hidden size)``."""
        words = self.text_embed(input_ids) if self.text_embed is not None else None
        hidden: torch.Tensor = self.encoder(self.vision_embed(pixel_values), words, attention_mask)
        return hidden


class Beit3PreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What both models share: their configuration and their random weights."""

    config_class = Beit3Config
    base_model_prefix = "beit3"
    main_input_name = "pixel_values"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, ImageEmbedding):
            nn.init.normal_(module.cls_token, std=self.config.initializer_range)


class Beit3ForImageClassification(Beit3PreTrainedModel):
    """Classes from the mean of the patches."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.beit3 = Beit3(config, words=False)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> Any:
        patches = self.beit3(pixel_values)[:, 1:]
        return ImageClassifierOutputWithNoAttention(logits=self.head(self.fc_norm(patches.mean(1))))


class Pooler(nn.Module):
    """The class token, normalised, through a linear layer and a tanh."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.dense(self.norm(hidden[:, 0])).tanh()
        return pooled


class Beit3ForVisualQuestionAnswering(Beit3PreTrainedModel):
    """Answers, as classes, to a question about an image."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.beit3 = Beit3(config, words=True)
        self.pooler = Pooler(config)
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.LayerNorm(2 * width, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Linear(2 * width, config.num_labels),
        )
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> Any:
        if input_ids is None:
            raise DataError("this BEiT-3 answers questions, and there are none; give --task visual_question_answering")
        hidden = self.pooler(self.beit3(pixel_values, input_ids, attention_mask))
        for layer in self.head:  # not called itself: nodes of the exported graph are named after the modules called
            hidden = layer(hidden)
        return SequenceClassifierOutput(logits=hidden)
