// SPDX-License-Identifier: Apache-2.0
// Bindings of Stream and Graph: one set of op methods, run at once or recorded. Rules of shapes
// live here; what only a run can know (ids, pages) is checked in csrc/core/ops.cpp.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "kt/check.h"
#include "kt/ops.h"

namespace kt::python {

using namespace nb::literals;

namespace {

using References = std::vector<nb::ndarray<nb::ro>>;

// A Stream or Graph with what it must keep alive: its pool and, for recorded ops, their arrays and
// weights.
class StreamHandle {
 public:
  explicit StreamHandle(std::shared_ptr<ThreadPool> pool)
      : pool_(std::move(pool)), stream_(std::make_unique<Stream>(*pool_)) {}

  // build(stream) records or runs one op; running releases the GIL.
  template <class Build>
  void submit(Build build, const References& arrays, std::shared_ptr<const void> weights = {}) {
    if (records_) {
      arrays_.insert(arrays_.end(), arrays.begin(), arrays.end());
      weights_.push_back(std::move(weights));
      build(*stream_);
      return;
    }
    const ReleasedGil released;
    build(*stream_);
  }
  ThreadPool& pool() const { return *pool_; }

 protected:
  StreamHandle(std::shared_ptr<ThreadPool> pool, std::unique_ptr<Stream> graph)
      : pool_(std::move(pool)), stream_(std::move(graph)), records_(true) {}

  std::shared_ptr<ThreadPool> pool_;
  std::unique_ptr<Stream> stream_;  // of pool_, so destroyed before it
  bool records_ = false;
  References arrays_;
  std::vector<std::shared_ptr<const void>> weights_;
};

class GraphHandle : public StreamHandle {
 public:
  GraphHandle(std::shared_ptr<ThreadPool> pool, nb::handle num_rows)
      : GraphHandle(pool,
                    num_rows.is_none()
                        ? std::nullopt
                        : std::optional<Array>(std::in_place, "graph", "num_rows", num_rows,
                                               Element::int32, std::initializer_list<Axis>{1})) {}
  void replay() {
    const ReleasedGil released;
    graph().replay();
  }
  size_t size() { return graph().size(); }

 private:
  GraphHandle(const std::shared_ptr<ThreadPool>& pool, const std::optional<Array>& num_rows)
      : StreamHandle(
            pool, std::make_unique<Graph>(*pool, num_rows ? num_rows->read<int32_t>() : nullptr)) {
    if (num_rows) arrays_.push_back(num_rows->reference());
  }
  Graph& graph() { return static_cast<Graph&>(*stream_); }
};

// A table of rows as a checkpoint has them; `hidden` is its columns.
Array table_of(const char* op, nb::handle weight, const FormatInfo& facts, int& hidden) {
  KT_CHECK(op, facts.self_scaled(),
           "format must be floats or blocks with scales of their own; got ", facts.name);
  if (facts.source_k == 0) {
    const DType dtype = dtype_from_name(op, "format", facts.name);
    Array table(op, "weight", weight, element_of(dtype), {"vocab_size", "hidden_size"});
    hidden = table.dim(1);
    return table;
  }
  Array table(op, "weight", weight, Element::uint8, {"vocab_size", "row_bytes"});
  hidden = source_columns(op, facts, table.dim(1));
  return table;
}

void embedding_op(StreamHandle& self, nb::handle ids, nb::handle weight,
                  const std::string& format_name, nb::handle out) {
  const char* op = "embedding";
  const Format format = format_from_name(op, format_name.c_str());
  int hidden = 0;
  const Array i(op, "ids", ids, Element::int32, {"num_tokens"});
  const Array w = table_of(op, weight, info(format), hidden);
  const Array o(op, "out", out, Element::float32, {i.dim(0), hidden}, Access::write);
  check_disjoint(op, o, {&i, &w});
  const EmbeddingArgs args{i.read<int32_t>(), w.read(), format, w.dim(0), hidden,
                           o.write<float>(),  {}};
  self.submit([&](Stream& stream) { embedding(stream, args, i.dim(0)); },
              {i.reference(), w.reference(), o.reference()});
}

void rms_norm_op(StreamHandle& self, nb::handle x, nb::handle weight, float eps, nb::handle out) {
  const char* op = "rms_norm";
  const bool per_head = rank_of(x) == 3;
  const Array in =
      per_head ? Array(op, "x", x, Element::float32, {"num_tokens", "num_heads", "head_dim"})
               : Array(op, "x", x, Element::float32, {"num_tokens", "hidden_size"});
  const int columns = in.dim(per_head ? 2 : 1);
  const int heads = per_head ? in.dim(1) : 1;
  const Array w(op, "weight", weight, Element::float32, {columns});
  const Array o =
      per_head ? Array(op, "out", out, Element::float32, {in.dim(0), heads, columns}, Access::write)
               : Array(op, "out", out, Element::float32, {in.dim(0), columns}, Access::write);
  check_disjoint(op, o, {&in}, true);
  check_disjoint(op, o, {&w});
  const RmsNormArgs args{in.read<float>(), w.read<float>(), o.write<float>(), columns, eps, {}};
  self.submit([&](Stream& stream) { rms_norm(stream, args, in.dim(0), heads); },
              {in.reference(), w.reference(), o.reference()});
}

void linear_op(StreamHandle& self, nb::handle x, std::vector<std::shared_ptr<Linear>> weights,
               const nb::sequence& outs, bool accumulate) {
  const char* op = "linear";
  KT_CHECK(op, !weights.empty() && nb::len(outs) == weights.size(),
           "linear and out must be as many, at least one; got ", weights.size(), " and ",
           nb::len(outs));
  const Array in(op, "x", x, Element::float32, {"num_tokens", weights[0]->matrix().k});
  References arrays{in.reference()};
  std::vector<Array> written;
  std::vector<LinearTerm> terms;
  for (size_t i = 0; i < weights.size(); ++i) {
    const PackedMatrix& matrix = weights[i]->matrix();
    KT_CHECK(op, matrix.k == in.dim(1), "linear must have in_features ", in.dim(1), " as x; got ",
             matrix.k);
    const nb::object out = outs[i];
    const Array o(op, "out", out, Element::float32, {in.dim(0), matrix.n}, Access::write);
    check_disjoint(op, o, {&in});
    for (const Array& other : written) check_disjoint(op, o, {&other});
    written.push_back(o);
    arrays.push_back(o.reference());
    terms.push_back({weights[i].get(), o.write<float>()});
  }
  self.submit(
      [&](Stream& stream) { linear(stream, terms, in.read(), DType::f32, in.dim(0), accumulate); },
      arrays, std::make_shared<const std::vector<std::shared_ptr<Linear>>>(std::move(weights)));
}

// The scales of an int8 cache, [num_pages][page_size][num_kv_heads] beside it; none otherwise.
class KvScales {
 public:
  KvScales(const char* op, nb::handle k_scales, nb::handle v_scales, KvDType dtype,
           const Array& cache, Access access) {
    const bool scaled = dtype == KvDType::int8;
    KT_CHECK(op, k_scales.is_none() != scaled && v_scales.is_none() != scaled,
             "k_scales and v_scales must be ", scaled ? "arrays" : "None", " for ",
             scaled ? "int8" : "float", " caches; got ", k_scales.is_none() ? "None" : "k_scales",
             " and ", v_scales.is_none() ? "None" : "v_scales");
    if (!scaled) return;
    const std::initializer_list<Axis> shape{cache.dim(0), cache.dim(1), cache.dim(2)};
    k_.emplace(op, "k_scales", k_scales, Element::float32, shape, access);
    v_.emplace(op, "v_scales", v_scales, Element::float32, shape, access);
  }
  const Array* k() const { return k_ ? &*k_ : nullptr; }
  const Array* v() const { return v_ ? &*v_ : nullptr; }

 private:
  std::optional<Array> k_, v_;
};

nb::ndarray<nb::ro> reference_of(const Array* array) {  // an empty one for null
  return array != nullptr ? array->reference() : nb::ndarray<nb::ro>();
}

void rope_write_kv_op(StreamHandle& self, nb::handle q, nb::handle k, nb::handle v, nb::handle cos,
                      nb::handle sin, nb::handle positions, nb::handle slot_mapping,
                      nb::handle k_cache, nb::handle v_cache, const std::string& kv_dtype,
                      nb::handle k_scales, nb::handle v_scales) {
  const char* op = "rope_write_kv";
  const KvDType dtype = kv_dtype_from_name(op, "kv_dtype", kv_dtype);
  const Array query(op, "q", q, Element::float32, {"num_tokens", "num_heads", "head_dim"},
                    Access::write);
  const int tokens = query.dim(0), head_dim = query.dim(2);
  const Array key(op, "k", k, Element::float32, {tokens, "num_kv_heads", head_dim});
  const int kv_heads = key.dim(1);
  const Array value(op, "v", v, Element::float32, {tokens, kv_heads, head_dim});
  const Array c(op, "cos", cos, Element::float32, {"max_positions", "rotary_dim / 2"});
  const Array s(op, "sin", sin, Element::float32, {c.dim(0), c.dim(1)});
  KT_CHECK(op, int64_t{2} * c.dim(1) <= head_dim, "rotary_dim must not exceed head_dim ", head_dim,
           "; got ", int64_t{2} * c.dim(1));
  const Array position(op, "positions", positions, Element::int32, {tokens});
  const Array slot(op, "slot_mapping", slot_mapping, Element::int32, {tokens});
  const Array kc(op, "k_cache", k_cache, element_of(dtype),
                 {"num_pages", "page_size", kv_heads, head_dim}, Access::write);
  const Array vc(op, "v_cache", v_cache, element_of(dtype),
                 {kc.dim(0), kc.dim(1), kv_heads, head_dim}, Access::write);
  const KvScales scales(op, k_scales, v_scales, dtype, kc, Access::write);
  KT_CHECK(op, std::max(query.dim(1), kv_heads) * int64_t{head_dim} <= kMaxExtent,
           "num_heads * head_dim must be at most ", kMaxExtent, "; got ", query.dim(1), " and ",
           kv_heads, " heads of ", head_dim);
  // Each written array against all that are read and those written before it.
  const std::initializer_list<const Array*> written{&query, &kc, &vc, scales.k(), scales.v()};
  for (const Array* const* w = written.begin(); w != written.end(); ++w) {
    if (*w == nullptr) continue;
    check_disjoint(op, **w, {&key, &value, &c, &s, &position, &slot});
    for (const Array* const* other = w + 1; other != written.end(); ++other)
      check_disjoint(op, **w, {*other});
  }
  RopeWriteKvArgs args{};
  args.q = query.write<float>();
  args.k = key.read<float>();
  args.v = value.read<float>();
  args.cos = c.read<float>();
  args.sin = s.read<float>();
  args.positions = position.read<int32_t>();
  args.slot_mapping = slot.read<int32_t>();
  args.k_cache = kc.write();
  args.v_cache = vc.write();
  args.k_scales = scales.k() ? scales.k()->write<float>() : nullptr;
  args.v_scales = scales.v() ? scales.v()->write<float>() : nullptr;
  args.kv_dtype = dtype;
  args.num_heads = query.dim(1);
  args.num_kv_heads = kv_heads;
  args.head_dim = head_dim;
  args.rotary_dim = 2 * c.dim(1);
  args.num_slots = int64_t{kc.dim(0)} * kc.dim(1);
  args.max_positions = c.dim(0);
  self.submit([&](Stream& stream) { rope_write_kv(stream, args, tokens); },
              {query.reference(), key.reference(), value.reference(), c.reference(), s.reference(),
               position.reference(), slot.reference(), kc.reference(), vc.reference(),
               reference_of(scales.k()), reference_of(scales.v())});
}

void attention_op(StreamHandle& self, nb::handle q, nb::handle k_cache, nb::handle v_cache,
                  const std::string& kv_dtype, nb::handle block_table, nb::handle seq_lens,
                  nb::handle cu_seqlens_q, float scale, nb::handle out, int window,
                  nb::handle sinks, nb::handle k_scales, nb::handle v_scales) {
  const char* op = "attention";
  const KvDType dtype = kv_dtype_from_name(op, "kv_dtype", kv_dtype);
  const Array query(op, "q", q, Element::float32, {"num_tokens", "num_heads", "head_dim"});
  const int tokens = query.dim(0), heads = query.dim(1), head_dim = query.dim(2);
  const Array kc(op, "k_cache", k_cache, element_of(dtype),
                 {"num_pages", "page_size", "num_kv_heads", head_dim});
  const int pages = kc.dim(0), page_size = kc.dim(1), kv_heads = kc.dim(2);
  KT_CHECK(op, page_size > 0, "page_size must be positive; got ", page_size);
  KT_CHECK(op, kv_heads > 0 && heads % kv_heads == 0,
           "num_heads must be a multiple of num_kv_heads ", kv_heads, "; got ", heads);
  const Array vc(op, "v_cache", v_cache, element_of(dtype), {pages, page_size, kv_heads, head_dim});
  const KvScales scales(op, k_scales, v_scales, dtype, kc, Access::read);
  KT_CHECK(op, window >= 0, "window must be 0 (none) or the number of keys seen; got ", window);
  std::optional<Array> sink;
  if (!sinks.is_none())
    sink.emplace(op, "sinks", sinks, Element::float32, std::initializer_list<Axis>{heads});
  const Array table(op, "block_table", block_table, Element::int32, {"num_seqs", "max_pages"});
  const int num_seqs = table.dim(0);
  const Array lens(op, "seq_lens", seq_lens, Element::int32, {num_seqs});
  const Array starts(op, "cu_seqlens_q", cu_seqlens_q, Element::int32, {int64_t{num_seqs} + 1});
  const Array o(op, "out", out, Element::float32, {tokens, heads, head_dim}, Access::write);
  KT_CHECK(op, int64_t{heads} * head_dim <= kMaxExtent, "num_heads * head_dim must be at most ",
           kMaxExtent, "; got ", heads, " heads of ", head_dim);
  check_disjoint(
      op, o,
      {&query, &kc, &vc, scales.k(), scales.v(), sink ? &*sink : nullptr, &table, &lens, &starts});
  AttentionArgs args{};
  args.q = query.read<float>();
  args.k_cache = kc.read();
  args.v_cache = vc.read();
  args.k_scales = scales.k() ? scales.k()->read<float>() : nullptr;
  args.v_scales = scales.v() ? scales.v()->read<float>() : nullptr;
  args.kv_dtype = dtype;
  args.sinks = sink ? sink->read<float>() : nullptr;
  args.block_table = table.read<int32_t>();
  args.seq_lens = lens.read<int32_t>();
  args.cu_seqlens_q = starts.read<int32_t>();
  args.num_seqs = num_seqs;
  args.max_pages = table.dim(1);
  args.page_size = page_size;
  args.num_pages = pages;
  args.num_heads = heads;
  args.num_kv_heads = kv_heads;
  args.head_dim = head_dim;
  args.window = window;
  args.scale = scale;
  args.out = o.write<float>();
  self.submit([&](Stream& stream) { attention(stream, args, tokens); },
              {query.reference(), kc.reference(), vc.reference(), table.reference(),
               lens.reference(), starts.reference(), o.reference(), reference_of(scales.k()),
               reference_of(scales.v()), reference_of(sink ? &*sink : nullptr)});
}

void activate_op(StreamHandle& self, nb::handle gate, nb::handle up, nb::handle out,
                 const std::string& kind, float limit, float alpha) {
  const char* op = "activate";
  const Activation activation = activation_from(op, kind, limit, alpha);
  KT_CHECK(op, gate.is_none() != activation.gated(), "gate must be ",
           activation.gated() ? "an array" : "None", " for ", kind, "; got ",
           gate.is_none() ? "None" : "one");
  const Array u(op, "up", up, Element::float32, {"num_tokens", "intermediate_size"});
  const Array o(op, "out", out, Element::float32, {u.dim(0), u.dim(1)}, Access::write);
  std::optional<Array> g;
  if (activation.gated())
    g.emplace(op, "gate", gate, Element::float32, std::initializer_list<Axis>{u.dim(0), u.dim(1)});
  check_disjoint(op, o, {g ? &*g : nullptr, &u}, true);
  const ActivateArgs args{g ? g->read<float>() : nullptr,
                          u.read<float>(),
                          o.write<float>(),
                          u.dim(1),
                          activation,
                          {},
                          {}};
  self.submit([&](Stream& stream) { activate(stream, args, u.dim(0), u.dim(1)); },
              {g ? g->reference() : nb::ndarray<nb::ro>(), u.reference(), o.reference()});
}

void add_op(StreamHandle& self, nb::handle x, nb::handle y, nb::handle out) {
  const char* op = "add";
  const Array a(op, "x", x, Element::float32, {"num_tokens", "hidden_size"});
  const Array b(op, "y", y, Element::float32, {a.dim(0), a.dim(1)});
  const Array o(op, "out", out, Element::float32, {a.dim(0), a.dim(1)}, Access::write);
  check_disjoint(op, o, {&a, &b}, true);
  const AddArgs args{a.read<float>(), b.read<float>(), o.write<float>(), {}};
  self.submit([&](Stream& stream) { add(stream, args, a.dim(0), a.dim(1)); },
              {a.reference(), b.reference(), o.reference()});
}

void route_op(StreamHandle& self, nb::handle logits, nb::handle topk_ids, nb::handle topk_weights,
              const Router& router, nb::handle bias, nb::handle input_ids, nb::handle hash_table) {
  const RouteArrays arrays(logits, topk_ids, topk_weights, router, bias, input_ids, hash_table);
  self.submit([&](Stream& stream) { route(stream, arrays.args(), arrays.rows()); },
              arrays.references());
}

void moe_op_method(StreamHandle& self, std::shared_ptr<MoeHandle> moe_handle, nb::handle hidden,
                   const std::string& hidden_dtype, nb::handle topk_ids, nb::handle topk_weights,
                   nb::handle out, const std::string& out_dtype, bool accumulate) {
  MoeHandle& handle = *moe_handle;
  KT_CHECK("moe", &handle.pool() == &self.pool(),
           "moe must belong to the stream's pool; got another pool");
  const MoeArrays arrays("moe", handle.moe(), hidden, hidden_dtype, topk_ids, topk_weights, out,
                         out_dtype, accumulate);
  self.submit([&](Stream& stream) { moe(stream, handle.moe(), arrays.call()); },
              arrays.references(), std::move(moe_handle));
}

}  // namespace

void bind_stream(nb::module_& m) {
  nb::class_<StreamHandle>(m, "Stream", "Runs each op at once; the call returns when it is done.")
      .def(nb::init<std::shared_ptr<ThreadPool>>(), "pool"_a)
      .def("embedding", &embedding_op, "ids"_a.none(), "weight"_a.none(), "format"_a,
           "out"_a.none())
      .def("rms_norm", &rms_norm_op, "x"_a.none(), "weight"_a.none(), "eps"_a, "out"_a.none(),
           "x (num_tokens, hidden_size) or (num_tokens, num_heads, head_dim); out may be x.")
      .def("linear", &linear_op, "x"_a.none(), "linears"_a, "outs"_a, "accumulate"_a = false)
      .def("rope_write_kv", &rope_write_kv_op, "q"_a.none(), "k"_a.none(), "v"_a.none(),
           "cos"_a.none(), "sin"_a.none(), "positions"_a.none(), "slot_mapping"_a.none(),
           "k_cache"_a.none(), "v_cache"_a.none(), "kv_dtype"_a, "k_scales"_a.none() = nb::none(),
           "v_scales"_a.none() = nb::none(),
           "Rotate q in place; write rotated k and v to their cache slots (negative: nowhere).")
      .def("attention", &attention_op, "q"_a.none(), "k_cache"_a.none(), "v_cache"_a.none(),
           "kv_dtype"_a, "block_table"_a.none(), "seq_lens"_a.none(), "cu_seqlens_q"_a.none(),
           "scale"_a, "out"_a.none(), "window"_a = 0, "sinks"_a.none() = nb::none(),
           "k_scales"_a.none() = nb::none(), "v_scales"_a.none() = nb::none())
      .def("activate", &activate_op, "gate"_a.none(), "up"_a.none(), "out"_a.none(), "kind"_a,
           "limit"_a, "alpha"_a)
      .def("add", &add_op, "x"_a.none(), "y"_a.none(), "out"_a.none())
      .def("route", &route_op, "logits"_a.none(), "topk_ids"_a.none(), "topk_weights"_a.none(),
           "router"_a, "bias"_a.none(), "input_ids"_a.none(), "hash_table"_a.none(),
           "Padding rows get ids -1 and weights 0.")
      .def("moe", &moe_op_method, "moe"_a, "hidden"_a.none(), "hidden_dtype"_a, "topk_ids"_a.none(),
           "topk_weights"_a.none(), "out"_a.none(), "out_dtype"_a, "accumulate"_a);

  nb::class_<GraphHandle, StreamHandle>(
      m, "Graph",
      "Records ops; replay() runs them all as one job. Keeps pool, "
      "arrays and weights alive.")
      .def(nb::init<std::shared_ptr<ThreadPool>, nb::handle>(), "pool"_a,
           "num_rows"_a.none() = nb::none(),
           "num_rows: int32 (1,), read at replay: rows at or beyond it are not computed.")
      .def("replay", &GraphHandle::replay)
      .def("__len__", &GraphHandle::size);
}

}  // namespace kt::python
