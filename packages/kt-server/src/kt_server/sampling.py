# SPDX-License-Identifier: Apache-2.0
"""Sampling settings of a request over those of the checkpoint. Their meaning is the engine's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from kt_runtime.core import SamplingParams

Number = TypeVar("Number", int, float)


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What applies where a request says nothing: the checkpoint's generation_config.json.

    None means that the checkpoint says nothing either.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None

    @classmethod
    def from_pretrained(cls, path: str | Path) -> SamplingDefaults:
        """Read generation_config.json of a checkpoint directory; all None where there is none, as
        with GGUF files.

        Raises:
            ValueError: the file is not what it should be.
        """
        file = Path(path) / "generation_config.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=cls)
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise ValueError(
                f"[sampling] {file} must be a readable generation config; got {error}"
            ) from None

    def params(
        self,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        min_tokens: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        repetition_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """A request's settings; None takes the checkpoint's, else the engine's default.

        Raises:
            InvalidFieldError: a value out of range.
        """

        return SamplingParams(
            max_tokens=self.max_new_tokens if max_tokens is None else max_tokens,
            temperature=_first(temperature, self.temperature, 1.0),
            top_p=_first(top_p, self.top_p, 1.0),
            top_k=max(0, _first(top_k, self.top_k, 0)),  # -1 is another way to say off
            min_p=_first(min_p, self.min_p, 0.0),
            # APIs take signed seeds; the engine's generator is keyed by 64 bits.
            seed=None if seed is None else seed % 2**64,
            stop=tuple(stop),
            stop_token_ids=tuple(stop_token_ids),
            ignore_eos=ignore_eos,
            min_tokens=min_tokens or 0,
            presence_penalty=presence_penalty or 0.0,
            frequency_penalty=frequency_penalty or 0.0,
            repetition_penalty=_first(repetition_penalty, self.repetition_penalty, 1.0),
            logit_bias=logit_bias or {},
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


def _first(value: Number | None, fallback: Number | None, default: Number) -> Number:
    if value is not None:
        return value
    return default if fallback is None else fallback
