# SPDX-License-Identifier: Apache-2.0
"""Settings are refused where they are made, with rule and value."""

import pytest

from kt_runtime import EngineConfig, SamplingParams


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"weight_format": "fp8"}, "weight_format must be one of native, float32"),
        ({"kv_dtype": "int8"}, "kv_dtype must be one of auto, float32, bf16; got 'int8'"),
        ({"backend": "cuda"}, "backend must be one of kt, torch"),
        ({"group_size": 48}, "group_size must be 32, 64 or 128; got 48"),
        ({"num_pages": 0}, "num_pages must be a whole number of at least 1; got 0"),
        ({"max_model_len": 0}, "max_model_len must be a whole number"),
        ({"kv_page_size": 1.5}, "kv_page_size must be a whole number of at least 1; got 1.5"),
        ({"num_threads": True}, "num_threads must be a whole number"),
        ({"kv_io": "aio"}, "kv_io must be one of auto, threads, uring; got 'aio'"),
        ({"kv_write_policy": "never"}, "kv_write_policy must be one of through, selective, back"),
        ({"kv_daily_write_gb": -1.0}, "kv_daily_write_gb must be at least 0 and finite; got -1.0"),
        ({"kv_read_gb_s": -1.0}, "kv_read_gb_s must be at least 0 and finite"),
        ({"kv_write_gb_s": float("nan")}, "kv_write_gb_s must be at least 0 and finite"),
        ({"kv_max_age_s": float("inf")}, "kv_max_age_s must be at least 0 and finite"),
        ({"kv_tenant_share": 0.0}, "kv_tenant_share must be greater than 0, at most 1"),
        ({"kv_tenant_share": 1.1}, "kv_tenant_share must be greater than 0, at most 1"),
        ({"kv_cpu_memory_gb": 0.0}, "kv_cpu_memory_gb must be positive"),
        ({"max_batch_tokens": 4}, "max_batch_tokens must be at least max_num_seqs"),
    ],
)
def test_bad_settings_are_refused(setting, match):
    with pytest.raises(ValueError, match=r"\[config\] " + match):
        EngineConfig(**setting)


def test_auto_kv_is_float32_only_where_everything_is():
    assert EngineConfig(weight_format="float32").resolved_kv_dtype == "float32"
    assert EngineConfig(weight_format="native").resolved_kv_dtype == "bf16"
    assert EngineConfig(weight_format="int4", kv_dtype="float32").resolved_kv_dtype == "float32"


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"max_tokens": -1}, "max_tokens must be at least 0; got -1"),
        ({"temperature": -0.1}, r"temperature must lie in \[0, 100\]; got -0.1"),
        ({"temperature": float("nan")}, "temperature must lie"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]; got 0.0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"min_p": 1.5}, r"min_p must lie in \[0, 1\]; got 1.5"),
        ({"stop": ("",)}, "stop strings must not be empty"),
        ({"stop": (b"x",)}, "stop must be strings"),
        ({"stop": 5}, "stop must be strings; got 5"),
        ({"stop_token_ids": (1.0,)}, "stop_token_ids must be ids"),
        ({"max_tokens": 2.5}, "max_tokens must be a whole number; got 2.5"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_k": None}, "top_k must be a whole number"),
        ({"seed": "a"}, "seed must be a whole number; got 'a'"),
        ({"temperature": "1"}, "temperature must be a number; got '1'"),
        ({"top_p": None}, "top_p must be a number"),
    ],
)
def test_bad_sampling_params_are_refused(setting, match):
    with pytest.raises(ValueError, match=r"\[sampling\] " + match):
        SamplingParams(**setting)


def test_one_stop_string_is_not_its_characters():
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)
