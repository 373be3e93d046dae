"""MMaDA as an ordinary transformers model: LLaDA's forward pass, its own configuration, saving and loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import authors_layout
import pytest
import torch
from authors_layout import own_logits
from transformers import AutoConfig, AutoModelForCausalLM

import wino
from wino.models import MMadaConfig, MMadaModelLM

SIZES: dict[str, Any] = {"codebook_size": 16, "num_vq_tokens": 9, "llm_vocab_size": 48, "new_vocab_size": 64}
# Read by the authors' code of every MMaDA checkpoint; its configuration class has no defaults.
THEIR_FIELDS = {
    *authors_layout.FIELDS,
    *SIZES,
    *("alibi_bias_max", "flash_attention", "attention_layer_norm_with_affine", "init_device", "init_fn"),
    *("init_cutoff_factor", "precision", "num_new_special_tokens"),
}


def fields(**changes: Any) -> dict[str, Any]:
    return {**authors_layout.FIELDS, **SIZES, "vocab_size": 64, **changes}


def test_logits_are_those_of_the_authors_layout() -> None:
    theirs = authors_layout.build(kind=authors_layout.MMadaModelLM, **SIZES)
    ours = MMadaModelLM(MMadaConfig(**fields())).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 64, (2, 40))
    torch.testing.assert_close(ours(ids).logits, own_logits(theirs, ids), atol=1e-4, rtol=0)


def test_the_defaults_are_those_of_the_8b() -> None:
    config = MMadaConfig()
    assert (config.vocab_size, config.embedding_size, config.codebook_size, config.num_vq_tokens) == (
        134656,
        134656,
        8192,
        1024,
    )
    assert (config.d_model, config.n_layers, config.mask_token_id) == (4096, 32, 126336)


def test_a_saved_checkpoint_holds_all_that_the_authors_code_reads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MMadaModelLM(MMadaConfig(**fields()))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(saved) >= THEIR_FIELDS and saved["model_type"] == "mmada" and saved["architectures"] == ["MMadaModelLM"]
    assert type(AutoConfig.from_pretrained(tmp_path)) is MMadaConfig
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is MMadaModelLM
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_wino_load_reads_it(tmp_path: Path, tokenizer_folder: Path) -> None:
    torch.manual_seed(0)
    MMadaModelLM(MMadaConfig(**fields())).save_pretrained(tokenizer_folder)
    model, _ = wino.load(tokenizer_folder)
    assert type(model) is MMadaModelLM
    out = wino.generate(model, torch.tensor([[50, 51, 52]]), max_new_tokens=8, block_length=4)
    assert out.sequences.shape == (1, 11)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"codebook_size": 0}, "codebook_size must be a positive integer, got 0"),
        ({"num_vq_tokens": 2.5}, r"num_vq_tokens must be a positive integer, got 2\.5"),
        ({"codebook_size": 64}, "no room for codebook_size = 64 codes"),
        ({"n_heads": 5}, "d_model must be an even multiple of n_heads"),
        ({"block_type": "sequential"}, "block_type='sequential' is not supported"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MMadaConfig(**fields(**changes))


def test_no_row_of_attention_is_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """What attention makes of such a row is a kernel's own affair: zeros in one, NaN in another."""
    masks, attend = [], torch.nn.functional.scaled_dot_product_attention

    def noted(*tensors: torch.Tensor, attn_mask: torch.Tensor, **settings: Any) -> torch.Tensor:
        masks.append(attn_mask)
        return attend(*tensors, attn_mask=attn_mask, **settings)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", noted)
    padding = torch.arange(20)[None] >= torch.tensor([[0], [7]])
    both = (padding[:, :, None] & padding[:, None, :])[:, None]
    MMadaModelLM(MMadaConfig(**fields())).eval()(torch.randint(0, 64, (2, 20)), attention_bias=both)
    assert masks and all(mask.any(-1).all() and torch.equal(mask[both], both[both]) for mask in masks)


def test_a_bias_and_a_mask_are_both_obeyed() -> None:
    """MMaDA's own callers pass ``mask_i and mask_j``, in which padded queries see nothing."""
    model = MMadaModelLM(MMadaConfig(**fields())).eval()
    ids = torch.randint(0, 64, (2, 20))
    padding = torch.ones(2, 20, dtype=torch.bool)
    padding[1, :7] = False
    both = (padding[:, :, None] & padding[:, None, :])[:, None]
    expected = model(ids, attention_mask=padding).logits
    logits = model(ids, attention_bias=both).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[padding], expected[padding], atol=1e-5, rtol=0)
    half = torch.ones(1, 1, 20, 20, dtype=torch.int8).tril()
    combined = model(ids, attention_mask=padding, attention_bias=half).logits
    torch.testing.assert_close(combined, model(ids, attention_mask=both & half.bool()).logits, atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match=r"attention_bias: expected booleans or integers 0 and 1, got torch\.float32"):
        model(ids, attention_bias=both.float())
    with pytest.raises(ValueError, match="attention_bias: expected shape"):
        model(ids, attention_bias=both[..., :3])
