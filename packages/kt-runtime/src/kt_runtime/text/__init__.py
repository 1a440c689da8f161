# SPDX-License-Identifier: Apache-2.0
"""Text before the engine (chat template, tokenizer) and after it (detokenizer). No tensors."""

from kt_runtime.text.chat_template import ChatTemplate
from kt_runtime.text.detokenize import Detokenizer
from kt_runtime.text.tokenizer import Tokenizer

__all__ = ("ChatTemplate", "Detokenizer", "Tokenizer")
