"""``wino.patch``: a live model of the authors' own code on our forward pass and our loop."""

from __future__ import annotations

from torch import nn

from ..models.patching import PatchHandle, install
from . import mmada


def patch(model: nn.Module) -> PatchHandle:
    """Make ``model``, a live LLaDA or MMaDA of the authors' code, run our forward pass and decode with our loop.

    ``model(input_ids, attention_mask=None, position_ids=None)`` then takes, by name, what
    ``wino.models.LLaDAModelLM.forward`` takes (and MMaDA's ``attention_bias``) and computes the same logits; arguments
    of the authors' forward beyond these raise. Same weights, no copy. What is put on the embedding, a norm, a
    projection or the LM head counts, before or after (LoRA, hooks, quantised or offloaded weights; of a PEFT model,
    patch ``get_base_model()``): that part is called, the others are fused. Hooks on other modules, such as whole
    blocks, would never run, and raise. A deep or unpickled copy is patched too, on its own:
    ``wino.models.patched(copy).unpatch()``. :func:`wino.generate` decodes with it. A MMaDA's ``mmu_generate`` goes
    through that loop, and it gets ``mmu_generate_wino`` and
        ``mmu_generate_confidence_threshold`` (:mod:`wino.integrations.mmada`).

    Under transformers 5 the authors' code builds (``LLaDAModelLM(config)`` and ``load_state_dict``) but neither loads
    with ``from_pretrained`` nor runs its own forward; once built it can be patched. :func:`wino.load` reads the same
    checkpoints without that code.

    Args:
        model: has ``model.transformer`` with ``wte``, ``blocks`` (or ``block_groups``), ``ln_f`` and, unless tied,
            ``ff_out``, and a ``config`` with the authors' fields.

    Returns:
        The handle that undoes it.

    Raises:
        TypeError: ``model`` lacks a part or a configuration field (named).
        ValueError: it is already patched, or its configuration asks for a forward pass that LLaDA-8B does not use.
        In both cases nothing was changed.
    """
    methods = mmada.METHODS if hasattr(type(model), "mmu_generate") else {}
    return install(model, methods)
