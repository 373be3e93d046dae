"""Settings of the model tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A checkpoint's folder that holds its tokenizer alone."""
    vocabulary = {token: i for i, token in enumerate(["<eos>", "<mask>", *"abcdef"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>")),
        eos_token="<eos>",
        mask_token="<mask>",
    )
    tokenizer.save_pretrained(tmp_path)
    return tmp_path
