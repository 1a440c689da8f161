# SPDX-License-Identifier: Apache-2.0
"""The two entry points: each returns its checkpoint's directory, building it on first use.

torch and gguf are imported only when something must be built: finding a built model is instant.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from kt_demo_model.home import kt_home, published_directory
from kt_demo_model.progress import BuildProgress
from kt_demo_model.source import GGUF_SHA256, source_gguf
from kt_demo_model.texts import calibration_text

# Raise a version whenever the bytes of that checkpoint change: machines that have it rebuild.
EXACT_RECIPE = "1"
SPARSE_RECIPE = "3"
# Small enough that both checkpoints come in several shards, as real ones do.
EXACT_SHARD_BYTES = 200 << 20
SPARSE_SHARD_BYTES = 100 << 20


def build_exact(progress: bool = True) -> Path:
    """Return the directory of `smolmoe-exact`: a Mixtral equal to the dense SmolLM2-135M.

    Args:
        progress: Report on stderr while building.

    Returns:
        $KT_HOME/models/smolmoe-exact, in Hugging Face layout, float32.

    Raises:
        RuntimeError: The source weights could not be downloaded.
        ValueError: The source weights found on disk are not the right ones.
    """
    report = BuildProgress(progress)

    def build(directory: Path) -> None:
        from safetensors.numpy import save_file

        from kt_demo_model.dense import read_dense
        from kt_demo_model.exact import exact_config, exact_tensors
        from kt_demo_model.shards import write_shards
        from kt_demo_model.tokenizer import write_json, write_tokenizer

        path = source_gguf(report)
        with report.phase("smolmoe-exact: reading the dense model", total=30) as step:
            model = read_dense(path, step)
        with report.phase("smolmoe-exact: writing the checkpoint", total=30) as step:
            write_tokenizer(model.metadata, directory)
            write_json(directory / "config.json", exact_config(model))
            write_shards(directory, exact_tensors(model, step), save_file, EXACT_SHARD_BYTES)

    recipe = {"name": "smolmoe-exact", "version": EXACT_RECIPE, "source_sha256": GGUF_SHA256}
    return published_directory(kt_home() / "models" / "smolmoe-exact", recipe, build)


def build_sparse(progress: bool = True) -> Path:
    """Return the directory of `smolmoe-sparse`: a glm4_moe with a router fitted on text.

    Args:
        progress: Report on stderr while building.

    Returns:
        $KT_HOME/models/smolmoe-sparse, in Hugging Face layout, bf16.

    Raises:
        RuntimeError: The source weights could not be downloaded.
        ValueError: The source weights found on disk are not the right ones.
    """
    report = BuildProgress(progress)
    text = calibration_text()

    def build(directory: Path) -> None:
        from safetensors.torch import save_file

        from kt_demo_model.dense import read_dense
        from kt_demo_model.shards import write_shards
        from kt_demo_model.sparse import sparse_config, sparse_tensors, tokenize_documents
        from kt_demo_model.tokenizer import build_tokenizer, write_json, write_tokenizer

        path = source_gguf(report)
        with report.phase("smolmoe-sparse: reading the dense model", total=30) as step:
            model = read_dense(path, step)
        write_tokenizer(model.metadata, directory)
        write_json(directory / "config.json", sparse_config(model))
        documents = tokenize_documents(text, build_tokenizer(model.metadata))
        with report.phase("smolmoe-sparse: fitting routers and experts", total=30) as step:
            tensors = sparse_tensors(model, documents, step)
            write_shards(directory, tensors, save_file, SPARSE_SHARD_BYTES)

    recipe = {
        "name": "smolmoe-sparse",
        "version": SPARSE_RECIPE,
        "source_sha256": GGUF_SHA256,
        "calibration_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return published_directory(kt_home() / "models" / "smolmoe-sparse", recipe, build)


BUILDERS: dict[str, Callable[..., Path]] = {
    "smolmoe-exact": build_exact,
    "smolmoe-sparse": build_sparse,
}
