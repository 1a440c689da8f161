# SPDX-License-Identifier: Apache-2.0
"""What the runtime needs from others, as Protocols owned by the consumer. Declarations only.

Importing this module does not import torch: the scheduler and its tests stay light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    # What a checkpoint holds: numpy's where that has the type, so that packing needs no torch.
    StoredArray = Tensor | NDArray[Any]

Projection = Literal["gate", "up", "down"]


@dataclass(frozen=True, slots=True)
class QuantTensor:
    """A quantised matrix as it is stored, to be packed as it is.

    Attributes:
        format: what kt_kernel calls it, e.g. "q4_k".
        blocks: (rows, bytes of a row) uint8.
        shape: (rows, columns) of its values.
    """

    format: str
    blocks: NDArray[Any]
    shape: tuple[int, int]


class TensorSource(Protocol):
    """A checkpoint's tensors by name, read lazily (memory-mapped); nothing is kept after the caller
    drops it. Names are Hugging Face's, whatever the file calls them."""

    def names(self) -> Sequence[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def format(self, name: str) -> str:
        """How it is stored, in kt_kernel's words: "float32", "bf16", "f16", "q4_0", …; a dtype
        that is no weight format by its torch name."""
        ...

    def nbytes(self, name: str) -> int: ...
    def get(self, name: str) -> StoredArray | QuantTensor:
        """Raises ValueError `[checkpoint] …` naming the tensor and file when it is missing or
        truncated."""
        ...

    def get_all(self, names: Sequence[str]) -> StoredArray | None:
        """Floats or blocks of several matrices, (len(names), rows, …), where the file has just
        these one after another; None where it does not."""
        ...


@dataclass(slots=True)
class Batch:
    """One step's inputs, int32 tensors on the engine's device. The field's usual names.

    T rows (tokens) of S sequences, in sequence order; row t belongs to the sequence s with
    cu_seqlens_q[s] <= t < cu_seqlens_q[s + 1]. Every sequence has at least one row, so T == S says
    that each has exactly one (a decode-shaped batch).

    Attributes:
        input_ids: (T,) filled by the batch builder.
        positions: (T,) absolute position of each row.
        slot_mapping: (T,) page * page_size + offset where the row's KV goes; -1 writes nothing.
        block_table: (S, max_pages) page ids of each sequence; unused entries 0.
        seq_lens: (S,) tokens of each sequence including this step's rows.
        cu_seqlens_q: (S + 1,) row offsets.
        logits_rows: (R,) rows whose logits are wanted, or None for all.
    """

    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    logits_rows: Tensor | None


@dataclass(frozen=True, slots=True)
class KVLayer:
    """KV pages of one layer: k and v are (num_pages, page_size, num_kv_heads, head_dim), float32 or
    bfloat16."""

    k: Tensor
    v: Tensor


class RopeTable(Protocol):
    """cos and sin: (max_positions, rotary_dim / 2) float32."""

    @property
    def cos(self) -> Tensor: ...
    @property
    def sin(self) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Router:
    """How experts are chosen from router logits (models.blocks fills it from config.json)."""

    top_k: int
    score: Literal["softmax", "sigmoid"]
    bias: Any = None  # packed by the Ops: (num_experts,) float32, added for the choice only
    num_groups: int = 1
    topk_groups: int = 1
    normalize: bool = True
    scale: float = 1.0


class Packer(Protocol):
    """Makes the weights that Ops of its kind compute with: once, at load."""

    def pack_vector(self, weight: StoredArray) -> Any:
        """(n,) → float32: norm gains, biases."""
        ...

    def pack_embedding(self, weight: StoredArray | QuantTensor) -> Any:
        """weight: (vocab_size, hidden_size), looked up as it is stored, and where it is stored."""
        ...

    def pack_linear(
        self,
        weight: StoredArray | QuantTensor,
        weight_format: str,
        bias: StoredArray | None = None,
    ) -> Any:
        """weight: (out, in), floats or what weight_format is; weight_format: a resolved one
        ("float32", "bf16", "int8", "q4_0", …), never "native"."""
        ...

    def pack_experts(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        top_k: int,
        weight_formats: Mapping[Projection, str],
        load: Callable[[int, Projection], StoredArray | QuantTensor],
        load_all: Callable[[Projection], StoredArray | None] = lambda _: None,
        name: str = "",
    ) -> Any:
        """Peak memory is the packed size plus one projection per thread: `load` is called from
        several. Each projection has a format of its own.

        load_all: one projection of all experts, (num_experts, rows, …), in its format or floats;
        None where `load` has to be asked for each.
        name: of these experts in the checkpoint. Ops that keep packed experts find them by it, and
        then load nothing.
        """
        ...


class Ops(Packer, Protocol):
    """Everything a model file may do. Activations are float32 tensors on the Ops' device; weights
    are opaque, made by a packer of the same kind. Compute functions return new tensors (in record
    mode: the graph's own buffers) and never modify their inputs, except rope_write_kv, which
    rotates q in place and writes KV pages.
    """

    def embedding(self, input_ids: Tensor, weight: Any) -> Tensor: ...
    def linear(self, x: Tensor, weight: Any, residual: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, added to a residual, which the caller gives up."""
        ...

    def linears(self, x: Tensor, weights: Sequence[Any]) -> tuple[Tensor, ...]:
        """Several weights on the same rows: x is read and rounded once."""
        ...

    def rms_norm(self, x: Tensor, weight: Any, eps: float) -> Tensor:
        """x: (T, n) or (T, heads, head_dim): normalised over the last axis."""
        ...

    def rope_write_kv(
        self, q: Tensor, k: Tensor, v: Tensor, rope: RopeTable, batch: Batch, kv: KVLayer
    ) -> None:
        """q: (T, num_heads, head_dim) rotated in place; k rotated and v written to
        batch.slot_mapping."""
        ...

    def attention(self, q: Tensor, kv: KVLayer, batch: Batch, scale: float) -> Tensor:
        """Causal GQA over pages → (T, num_heads, head_dim)."""
        ...

    def route(self, logits: Tensor, router: Router) -> tuple[Tensor, Tensor]:
        """(T, num_experts) → topk_ids (T, top_k) int32, topk_weights (T, top_k) float32."""
        ...

    def experts(
        self, x: Tensor, experts: Any, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor
    ) -> Tensor:
        """Weighted sum of the chosen experts, added to the residual, which the caller gives up."""
        ...

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor: ...
    def eager(self, name: str, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """An op for which there is no kernel: a function on torch tensors, whose first axis are the
        rows of the batch, and so is that of its result. A row of it must depend on the same row of
        the inputs alone. A recorded forward is divided there, which costs a wake-up of the threads
        each time; `name` is reported.
        """
        ...

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the engine must know of a model to feed it; the rest stays in the model file."""

    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    num_experts: int = 0  # routed ones of a layer; 0 where every layer is dense
    top_k: int = 0  # of them, how many a token visits


class CausalLM(Protocol):
    """A loaded model. Holds packed weights; the same object runs on eager and recording Ops of one
    kind."""

    @property
    def shape(self) -> ModelShape: ...
    @property
    def weight_formats(self) -> Mapping[str, str]:
        """What each kind of matrix was packed to: {"experts": "int4", "linear": "int8", …}."""
        ...

    def forward(self, ops: Ops, batch: Batch, kv: Sequence[KVLayer]) -> Tensor:
        """→ logits (R, vocab_size) float32 of batch.logits_rows (all rows if None)."""
        ...


class GraphRunner(Protocol):
    """Runs decode batches from recorded graphs; one implementation per device."""

    @property
    def eager_ops(self) -> Mapping[str, int]:
        """Ops of a forward that run between graphs, and how often; of what was recorded so far."""
        ...

    def can_run(self, num_rows: int) -> bool: ...
    def run(self, batch: Batch) -> Tensor:
        """batch with one row per sequence → logits (T, vocab_size); valid until the next run."""
        ...


class PageTable(Protocol):
    """The KV pages of one running sequence. Page ids are ints; nothing here knows tensors."""

    @property
    def page_ids(self) -> Sequence[int]:
        """Pages in sequence order: reused ones first, then the sequence's own."""
        ...

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose KV already lies in the first pages; 0 while loading."""
        ...

    @property
    def is_loading(self) -> bool:
        """Whether stored KV is on its way into the pages: until `settle` nothing may be computed,
        committed or grown."""
        ...

    @property
    def has_loaded(self) -> bool:
        """Whether there is nothing more to wait for: it is time to `settle`."""
        ...

    def settle(self) -> bool:
        """Take what the load brought, and pages for what it did not.

        False if too few are free: then all that is left is `release`.
        """
        ...

    def commit(self, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Publish the pages that are now full: the KV of token_ids[:num_computed_tokens] is
        written."""
        ...

    def grow(self, num_tokens: int) -> bool:
        """Have pages for `num_tokens` tokens; False, and nothing has changed, if too few are
        free."""
        ...

    def release(self) -> None:
        """Give the pages back; published ones stay reusable until they are evicted. Idempotent.

        Those that a load is still writing come back when it has ended.
        """
        ...


class PageAllocator(Protocol):
    """Where the scheduler gets pages from (`cache.PagePool`)."""

    def allocate(
        self, token_ids: Sequence[int], num_tokens: int, tenant: str | None, reuse: bool
    ) -> PageTable | None:
        """Pages for `num_tokens` tokens that begin with token_ids, or None if too few are free.

        At least one of token_ids is left to compute. reuse=False neither takes nor publishes
        prefixes.
        """
        ...

    @property
    def num_loads_ended(self) -> int:
        """How many loads have ended: with each, pages may have come free."""
        ...


class PrefixChain(Protocol):
    """Page keys of one token sequence, hashed incrementally."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens; only new full pages are hashed."""
        ...


class PrefixLoad(Protocol):
    """Pages on their way from slower storage into memory."""

    def done(self) -> bool: ...
    def add_done_callback(self, callback: Callable[[Any], object]) -> object:
        """Called once, from any thread; at once if the load has ended already."""
        ...


class PrefixLease(Protocol):
    """The longest stored prefix of a chain, pinned until release."""

    @property
    def page_ids(self) -> Sequence[int]:
        """Pages in memory whose KV is right; more after a load, as far as it went well."""
        ...

    @property
    def num_loadable_tokens(self) -> int:
        """Tokens that follow those pages and are stored elsewhere."""
        ...

    def load(self, deadline: float | None = None) -> PrefixLoad:
        """Bring them into memory, in the background; what is not there in `deadline` seconds does
        not count."""
        ...

    @property
    def tail(self) -> object | None:
        """A page of another sequence that begins as this chain goes on; None if there is none."""
        ...

    def release_tail(self) -> None:
        """Do without it: its page may be taken for something else."""
        ...

    def release(self) -> None: ...


class PrefixReservation(Protocol):
    """Pages that are being written: invisible to others until committed."""

    @property
    def page_ids(self) -> Sequence[int]: ...
    def commit(self, n: int, after: Any) -> object:
        """The next n pages are full: publish them under the chain's keys.

        `after`: an event to wait for, None where the writes are already done.
        """
        ...

    def copy_tail(self, lease: Any) -> int:
        """Fill the first page with the lease's tail, which follows its last page; returns the
        tokens whose KV is then there."""
        ...

    def release(self) -> None: ...


class PrefixSpace(Protocol):
    """One namespace of the store: pages of one model, format and tenant."""

    def chain(self, tokens: Sequence[int]) -> PrefixChain: ...
    def acquire(
        self, chain: Any, max_tokens: int | None = None, *, tail: bool = False
    ) -> PrefixLease: ...
    def reserve(self, chain: Any, first_page: int, n: int) -> PrefixReservation:
        """n fresh pages for pages first_page, first_page + 1, … of the chain.

        Raises the store's own error when it cannot, and reserves nothing then.
        """
        ...
