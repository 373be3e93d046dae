"""MMaDA: LLaDA's trunk over a vocabulary that image codes widen, in the Hugging Face layout of ``Gen-Verse/MMaDA-8B``.

The forward pass is LLaDA's (:mod:`wino.models.forward`); how images and text become tokens is :mod:`wino.multimodal`.
"""

from __future__ import annotations

from typing import Any

from .architecture import SIZE, check_field
from .llada import LLaDAConfig, LLaDAModelLM

# Fields that the authors' code reads of every checkpoint and that change nothing here.
_UNUSED_FIELDS: dict[str, Any] = {
    "alibi_bias_max": 8.0,
    "flash_attention": False,
    "attention_layer_norm_with_affine": True,
    "init_device": "cpu",
    "init_fn": "normal",
    "init_cutoff_factor": None,
    "precision": None,
    "use_cache": False,
}


class MMadaConfig(LLaDAConfig):
    """LLaDA's configuration and the sizes of the image half, with the field names of the published checkpoints.

    Args:
        codebook_size: image codes; they are the tokens from ``len(tokenizer)`` on.
        num_vq_tokens: codes of one image.
        llm_vocab_size: rows of the head before it was widened; new_vocab_size: after.
        **fields: those of :class:`LLaDAConfig`; ``vocab_size`` is ``new_vocab_size`` if not given.

    Raises:
        ValueError: a size is not a positive integer, the vocabulary has no room for the codes, or what
            :class:`LLaDAConfig` refuses.
    """

    model_type = "mmada"

    def __init__(
        self,
        codebook_size: int = 8192,
        num_vq_tokens: int = 1024,
        llm_vocab_size: int = 126464,
        new_vocab_size: int = 134656,
        num_new_special_tokens: int = 0,
        **fields: Any,
    ) -> None:
        self.codebook_size = codebook_size
        self.num_vq_tokens = num_vq_tokens
        self.llm_vocab_size = llm_vocab_size
        self.new_vocab_size = new_vocab_size
        self.num_new_special_tokens = num_new_special_tokens
        for name in ("codebook_size", "num_vq_tokens", "llm_vocab_size", "new_vocab_size"):
            check_field(name, getattr(self, name), SIZE)
        if num_new_special_tokens != 0:
            check_field("num_new_special_tokens", num_new_special_tokens, SIZE)
        for name, value in _UNUSED_FIELDS.items():
            setattr(self, name, fields.pop(name, value))
        super().__init__(**{"vocab_size": new_vocab_size, **fields})
        if codebook_size >= self.embedding_size:
            raise ValueError(
                f"MMaDA configuration: no room for codebook_size = {codebook_size} codes beside text in a vocabulary "
                f"of {self.embedding_size}"
            )


class MMadaModelLM(LLaDAModelLM):
    """MMaDA with its LM head; decode with :func:`wino.generate`, prompts from :class:`wino.multimodal.PromptLayout`."""

    config_class = MMadaConfig
