"""How MMaDA lays out prompts: task token, picture, text.

``<|mmu|> <|soi|> codes <|eoi|> <|sot|> chat text`` asks about pictures; ``<|t2i|> <|sot|> text <|eot|> <|soi|> codes
<|eoi|>`` asks for one. Codes are the tokens from ``len(tokenizer)`` on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..chat import render_chats

# Where MMaDA-8B put its tokens, among those that LLaDA's tokenizer keeps in reserve.
_RESERVED = {"<|soi|>": 126084, "<|eoi|>": 126085, "<|t2i|>": 126088, "<|mmu|>": 126089}
_CHAT = "<|start_header_id|>user<|end_header_id|>\n{text}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"


class PromptLayout:
    """Prompts for one model and its tokenizer, as lists of token ids; :func:`pad_left` of the package makes a batch.

    Attributes:
        code_offset: token id of code 0.
        codebook_size: number of codes.
        num_codes: codes of one picture.
        token_range: ``(first, behind)``, the token ids of codes; a setting of :func:`wino.generate`.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        """``config``: a :class:`wino.models.MMadaConfig` or the authors'.

        Raises:
            ValueError: the tokenizer lacks a token of the layout (named), or codes would lie beyond the vocabulary.
        """
        self.tokenizer = tokenizer
        self.code_offset = len(tokenizer) + config.num_new_special_tokens
        self.codebook_size: int = config.codebook_size
        self.num_codes: int = config.num_vq_tokens
        self.token_range = (self.code_offset, self.code_offset + self.codebook_size)
        self._special = {name: self._id_of(name) for name in _RESERVED}
        for name, value in (("<|sot|>", tokenizer.bos_token_id), ("<|eot|>", tokenizer.eos_token_id)):
            if value is None:
                raise ValueError(f"the tokenizer has no {'bos' if name == '<|sot|>' else 'eos'}_token ({name})")
            self._special[name] = value
        rows = config.embedding_size or config.vocab_size
        if self.token_range[1] > rows:
            raise ValueError(
                f"the tokenizer's {len(tokenizer)} tokens and {self.codebook_size} codes are more than the model's "
                f"vocabulary of {rows}"
            )

    def _id_of(self, name: str) -> int:
        own = self.tokenizer.convert_tokens_to_ids(name)
        if own is not None and own != self.tokenizer.unk_token_id:
            return own
        reserved = _RESERVED[name]
        if reserved < len(self.tokenizer) and "reserved" in str(self.tokenizer.convert_ids_to_tokens(reserved)):
            return reserved
        raise ValueError(f"the tokenizer has no token {name}")

    def about_picture(self, codes: Tensor | Sequence[Tensor], text: str) -> list[int]:
        """The prompt of a question, ``text``, about one picture or several.

        Args:
            codes: (N,) int64 of one picture, or a sequence of such.

        Raises:
            TypeError, ValueError: codes that are not int64 or not in [0, codebook_size); text that the tokenizer
                cannot encode.
        """
        ids = [self._special["<|mmu|>"]]
        for picture in [codes] if isinstance(codes, Tensor) else codes:
            ids += [self._special["<|soi|>"], *self._tokens_of(picture), self._special["<|eoi|>"]]
        return [*ids, self._special["<|sot|>"], *self._chat(text)]

    def for_picture(self, text: str) -> list[int]:
        """The prompt of a picture that ``text`` describes, to the token before its codes; "": of any picture.

        Raises:
            ValueError: text that the tokenizer cannot encode.
        """
        words = self._encode(text) if text else []
        if words[:1] == [self._special["<|sot|>"]]:
            words = words[1:]
        names = self._special
        return [names["<|t2i|>"], names["<|sot|>"], *words, names["<|eot|>"], names["<|soi|>"]]

    def picture_region(self, mask_token_id: int) -> list[int]:
        """What is generated after :meth:`for_picture`: a mask for each code, then the fixed ``<|eoi|>``."""
        return [mask_token_id] * self.num_codes + [self._special["<|eoi|>"]]

    def codes_of(self, tokens: Tensor) -> Tensor:
        """Codes (..., num_codes) of a decoded :meth:`picture_region` (..., num_codes + 1).

        Raises:
            ValueError: a token that is no code (a decode without ``token_range``).
        """
        codes = tokens[..., : self.num_codes] - self.code_offset
        wrong = (codes < 0) | (codes >= self.codebook_size)
        if wrong.any():
            bad = int(tokens[..., : self.num_codes][wrong][0])
            raise ValueError(
                f"tokens: {bad} is no image code, which are {self.token_range[0]} .. {self.token_range[1] - 1}"
            )
        return codes

    def _tokens_of(self, codes: Tensor) -> list[int]:
        if not isinstance(codes, Tensor) or codes.dtype != torch.int64 or codes.dim() != 1 or not len(codes):
            shown = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
            raise TypeError(f"codes: expected an int64 tensor (N,), not empty, got {shown}")
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(f"codes: must lie in [0, {self.codebook_size}), got {low if low < 0 else high}")
        return (codes + self.code_offset).tolist()

    def _chat(self, text: str) -> list[int]:
        if self.tokenizer.chat_template is None:
            return self._encode(_CHAT.format(text=text))
        chat = [{"role": "user", "content": text}]
        ids = self._encode(render_chats(self.tokenizer, [chat])[0])
        return ids[1:] if ids[:1] == [self._special["<|sot|>"]] else ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise ValueError(f"text: the tokenizer cannot encode a part of {text!r}")
        if not ids:
            raise ValueError(f"text: no token comes of {text!r}")
        return ids
