# SPDX-License-Identifier: Apache-2.0
"""Prompts of random words with about as many tokens as wanted, by what the server itself counts."""

from __future__ import annotations

import random

from kt_server.bench.client import BenchClient

# Frequent words: one token each, with the space before it, in most vocabularies.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city name team minute idea body back parent face level office door health "
    "person art war history party result change morning reason research girl guy moment air"
)

# The first guess may be far off (a word may be six tokens), and too long a prompt is refused: so it
# is made with a short one.
_CALIBRATION_SHARES = (1 / 8, 1)


class PromptMaker:
    """Random prompts, no two of which begin alike; equal seeds make equal prompts.

    Args:
        seed: of the words.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._words = _WORDS.split()
        self._words_per_token = 1.0

    def prompt(self, num_tokens: int) -> str:
        """Words of about `num_tokens` tokens."""
        count = max(1, round(num_tokens * self._words_per_token))
        return " ".join(self._random.choices(self._words, k=count))

    async def calibrate(self, client: BenchClient, num_tokens: int) -> None:
        """Learn from the server's usage how many words make `num_tokens` tokens.

        Raises:
            RuntimeError: it does not answer.
        """
        for share in _CALIBRATION_SHARES:
            wanted = max(1, round(share * num_tokens))
            record = await client.ask(self.prompt(wanted), 1)
            if record.error is not None:
                raise RuntimeError(f"[bench] the server must answer; got {record.error}")
            self._words_per_token *= wanted / record.prompt_tokens
