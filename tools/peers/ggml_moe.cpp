// SPDX-License-Identifier: Apache-2.0
// One MoE layer on llama.cpp's CPU backend, as a child process of kernels.py (protocol: child.py).
// Experts only: no router, no attention. Weights go where llama.cpp's loader puts them, repacked if
// the backend can repack their type.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <strings.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace {

constexpr std::size_t max_nodes = 256;  // the graph has about 11 + top_k
constexpr int projections = 3;          // gate, up, down
// gpt-oss's SwiGLU, as llama.cpp calls it.
constexpr float oai_alpha = 1.702F, oai_limit = 7.0F;

template <auto Free>
struct Freed {
  template <class T>
  void operator()(T* owned) const {
    Free(owned);
  }
};
using Context = std::unique_ptr<ggml_context, Freed<ggml_free>>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Freed<ggml_backend_buffer_free>>;
using Backend = std::unique_ptr<ggml_backend, Freed<ggml_backend_free>>;
using Threads = std::unique_ptr<ggml_threadpool, Freed<ggml_threadpool_free>>;
using Allocator = std::unique_ptr<ggml_gallocr, Freed<ggml_gallocr_free>>;

Context make_context(std::size_t tensors) {
  const auto bytes =
      tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false);
  return Context(ggml_init({bytes, nullptr, /*no_alloc=*/true}));
}

ggml_type type_named(const std::string& name) {
  for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
    const auto type = static_cast<ggml_type>(i);
    if (ggml_blck_size(type) > 0 && strcasecmp(name.c_str(), ggml_type_name(type)) == 0)
      return type;
  }
  throw std::runtime_error("ggml has no type " + name);
}

std::vector<std::uint8_t> read_file(const std::string& path) {
  std::vector<std::uint8_t> bytes(std::filesystem::file_size(path));
  if (!std::ifstream(path, std::ios::binary)
           .read(reinterpret_cast<char*>(bytes.data()), std::ssize(bytes)))
    throw std::runtime_error("cannot read " + path);
  return bytes;
}

// How many expert rows of 8 or 4 ggml interleaves is only said in its log.
std::string repacked_as;
void listen(ggml_log_level level, const char* text, void*) {
  const std::string_view line(text);
  if (line.find("repack tensor") != line.npos) {
    const auto start = line.rfind(' ') + 1;
    repacked_as = line.substr(start, line.find('\n') - start);
  } else if (level >= GGML_LOG_LEVEL_WARN) {
    std::cerr << text;
  }
}

struct Load {
  std::string type, activation;
  bool biases;
  int experts, hidden, intermediate, top_k, layers, max_tokens, threads;
  std::string weights;

  // Tensors of a layer: gate, up and down, then their biases.
  int parts() const { return biases ? 2 * projections : projections; }
};

// The input file of one `run`; layout in child.py.
struct Inputs {
  std::vector<std::uint8_t> bytes;
  std::int32_t tokens, top_k, hidden, calls;

  explicit Inputs(const std::string& path) : bytes(read_file(path)) {
    std::int32_t header[4];
    std::memcpy(header, bytes.data(), sizeof header);
    std::tie(tokens, top_k, hidden, calls) = std::tie(header[0], header[1], header[2], header[3]);
  }
  std::size_t slots() const { return std::size_t(tokens) * top_k * 4; }
  const void* activations() const { return bytes.data() + 16; }
  const void* ids(int call) const {
    return bytes.data() + 16 + std::size_t(tokens) * hidden * 4 + call * slots();
  }
  const void* routing_weights(int call) const {
    return static_cast<const char*>(ids(0)) + (calls + call) * slots();
  }
};

// One layer's graph for one number of tokens.
struct Graph {
  Context context = make_context(max_nodes);
  ggml_cgraph* nodes = ggml_new_graph_custom(context.get(), max_nodes, false);
  ggml_tensor *hidden, *ids, *weights, *out;

  Graph(const Load& load, std::span<ggml_tensor* const> layer, int tokens) {
    auto* c = context.get();
    hidden = ggml_new_tensor_3d(c, GGML_TYPE_F32, load.hidden, 1, tokens);
    ids = ggml_new_tensor_2d(c, GGML_TYPE_I32, load.top_k, tokens);
    weights = ggml_new_tensor_3d(c, GGML_TYPE_F32, 1, load.top_k, tokens);
    for (auto* input : {hidden, ids, weights}) ggml_set_input(input);
    const auto project = [&](int projection, ggml_tensor* x) {
      auto* y = ggml_mul_mat_id(c, layer[projection], x, ids);
      return load.biases ? ggml_add_id(c, y, layer[projections + projection], ids) : y;
    };
    auto* gate = project(0, hidden);
    auto* up = project(1, hidden);
    auto* inner = load.activation == "swigluoai"
                      ? ggml_swiglu_oai(c, gate, up, oai_alpha, oai_limit)
                      : ggml_swiglu_split(c, gate, up);
    auto* scaled = ggml_mul(c, project(2, inner), weights);
    for (int slot = 0; slot < load.top_k; ++slot) {
      auto* one = ggml_view_2d(c, scaled, load.hidden, tokens, scaled->nb[2], slot * scaled->nb[1]);
      out = slot == 0 ? one : ggml_add(c, out, one);
    }
    if (load.top_k == 1) out = ggml_cont(c, out);
    ggml_set_output(out);
    ggml_build_forward_expand(nodes, out);
  }
};

class Layers {
 public:
  explicit Layers(const Load& load)
      : load_(load), weights_context_(make_context(load.parts() * load.layers)) {
    if (load.activation != "silu" && load.activation != "swigluoai")
      throw std::runtime_error("no activation " + load.activation);
    auto params = ggml_threadpool_params_default(load.threads);
    threads_.reset(ggml_threadpool_new(&params));
    ggml_backend_cpu_set_n_threads(backend_.get(), load.threads);
    ggml_backend_cpu_set_threadpool(backend_.get(), threads_.get());
    const auto type = type_named(load.type);
    for (int layer = 0; layer < load.layers; ++layer) {
      for (const bool down : {false, false, true}) {
        const int columns = down ? load.intermediate : load.hidden;
        const int rows = down ? load.hidden : load.intermediate;
        if (columns % ggml_blck_size(type) != 0)
          throw std::runtime_error(load.type + " needs multiples of " +
                                   std::to_string(ggml_blck_size(type)) + "; got " +
                                   std::to_string(columns));
        auto* tensor =
            ggml_new_tensor_3d(weights_context_.get(), type, columns, rows, load.experts);
        place(tensor);
        tensors_.push_back(tensor);
      }
      for (int p = projections; p < load.parts(); ++p) {
        const auto rows = tensors_[tensors_.size() - projections]->ne[1];
        auto* tensor =
            ggml_new_tensor_2d(weights_context_.get(), GGML_TYPE_F32, rows, load.experts);
        allocate(tensor, ggml_backend_cpu_buffer_type());
        tensors_.push_back(tensor);
      }
    }
    fill(read_file(load.weights));
  }

  std::size_t bytes_per_expert() const {
    std::size_t bytes = 0;
    for (int part = 0; part < load_.parts(); ++part) bytes += part_bytes(part);
    return bytes;
  }
  std::string placement() const {
    static constexpr const char* names[projections] = {"gate", "up", "down"};
    std::string text;
    for (int p = 0; p < projections; ++p)
      text += std::string(p ? ", " : "") + names[p] + " in " +
              ggml_backend_buffer_name(tensors_[p]->buffer);
    return text + (repacked_as.empty() ? "" : " as " + repacked_as);
  }

  std::vector<double> run(const Inputs& inputs, const std::string& output) {
    if (inputs.hidden != load_.hidden || inputs.top_k != load_.top_k ||
        inputs.tokens > load_.max_tokens)
      throw std::runtime_error("inputs do not fit the layer");
    std::vector<std::unique_ptr<Graph>> graphs;
    for (int layer = 0; layer < load_.layers; ++layer)
      graphs.push_back(std::make_unique<Graph>(
          load_, std::span(tensors_).subspan(load_.parts() * layer, load_.parts()), inputs.tokens));
    std::vector<double> seconds;
    for (int call = 0; call < inputs.calls; ++call) {
      const auto& graph = *graphs[call % load_.layers];
      if (!ggml_gallocr_alloc_graph(allocator_.get(), graph.nodes)) throw std::bad_alloc();
      ggml_backend_tensor_set(graph.hidden, inputs.activations(), 0, ggml_nbytes(graph.hidden));
      ggml_backend_tensor_set(graph.ids, inputs.ids(call), 0, ggml_nbytes(graph.ids));
      ggml_backend_tensor_set(graph.weights, inputs.routing_weights(call), 0,
                              ggml_nbytes(graph.weights));
      const auto started = std::chrono::steady_clock::now();
      if (ggml_backend_graph_compute(backend_.get(), graph.nodes) != GGML_STATUS_SUCCESS)
        throw std::runtime_error("ggml did not compute the graph");
      seconds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
      if (call + 1 == inputs.calls) write(graph.out, output);
    }
    return seconds;
  }

 private:
  // As llama.cpp's loader: the first buffer type, extra ones first, on which the backend says it
  // can run the op.
  void place(ggml_tensor* tensor) {
    const auto device = ggml_backend_get_device(backend_.get());
    const auto extra_of =
        reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    std::vector<ggml_backend_buffer_type_t> candidates;
    for (auto* extra = extra_of ? extra_of(device) : nullptr; extra && *extra; ++extra)
      candidates.push_back(*extra);
    candidates.push_back(ggml_backend_dev_buffer_type(device));
    for (auto type : candidates) {
      if (can_run(device, type, tensor)) return allocate(tensor, type);
    }
    throw std::runtime_error("ggml's CPU backend cannot multiply " + load_.type);
  }

  void allocate(ggml_tensor* tensor, ggml_backend_buffer_type_t type) {
    Buffer buffer(
        ggml_backend_buft_alloc_buffer(type, ggml_backend_buft_get_alloc_size(type, tensor)));
    if (!buffer) throw std::bad_alloc();
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_alloc(buffer.get(), tensor, ggml_backend_buffer_get_base(buffer.get()));
    buffers_.push_back(std::move(buffer));
  }

  bool can_run(ggml_backend_dev_t device, ggml_backend_buffer_type_t type,
               const ggml_tensor* tensor) const {
    const auto context = make_context(4);
    auto* w = ggml_new_tensor_3d(context.get(), tensor->type, tensor->ne[0], tensor->ne[1],
                                 tensor->ne[2]);
    auto* b = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, tensor->ne[0], load_.top_k,
                                 load_.max_tokens);
    auto* ids = ggml_new_tensor_2d(context.get(), GGML_TYPE_I32, load_.top_k, load_.max_tokens);
    auto* op = ggml_mul_mat_id(context.get(), w, b, ids);
    const Buffer empty(ggml_backend_buft_alloc_buffer(type, 0));
    w->buffer = empty.get();
    return ggml_backend_dev_supports_op(device, op);
  }

  // Of one expert.
  std::size_t part_bytes(std::size_t tensor) const {
    return ggml_nbytes(tensors_[tensor]) / load_.experts;
  }

  // The file holds a few experts, each in parts; expert e gets number e modulo their count.
  void fill(std::span<const std::uint8_t> file) {
    const auto distinct = file.size() / bytes_per_expert();
    for (std::size_t i = 0, offset = 0; i < tensors_.size(); ++i) {
      offset = i % load_.parts() == 0 ? 0 : offset + part_bytes(i - 1);
      const auto bytes = part_bytes(i);
      std::vector<std::uint8_t> all(bytes * load_.experts);
      for (int e = 0; e < load_.experts; ++e)
        std::ranges::copy(file.subspan((e % distinct) * bytes_per_expert() + offset, bytes),
                          all.begin() + e * bytes);
      ggml_backend_tensor_set(tensors_[i], all.data(), 0, all.size());
    }
  }

  static void write(const ggml_tensor* tensor, const std::string& path) {
    std::vector<char> bytes(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, bytes.data(), 0, bytes.size());
    if (!std::ofstream(path, std::ios::binary).write(bytes.data(), std::ssize(bytes)))
      throw std::runtime_error("cannot write " + path);
  }

  Load load_;
  Backend backend_{ggml_backend_cpu_init()};
  Threads threads_;
  Allocator allocator_{ggml_gallocr_new(ggml_backend_cpu_buffer_type())};
  Context weights_context_;
  std::vector<Buffer> buffers_;
  std::vector<ggml_tensor*> tensors_;
};

std::string answer(std::istringstream words, std::unique_ptr<Layers>& layers) {
  std::ostringstream reply;
  std::string command;
  words >> command;
  if (command == "load") {
    Load load;
    words >> load.type >> load.activation >> load.biases >> load.experts >> load.hidden >>
        load.intermediate >> load.top_k >> load.layers >> load.max_tokens >> load.threads >>
        load.weights;
    if (!words) throw std::runtime_error("load wants 11 words");
    layers.reset();
    repacked_as.clear();
    layers = std::make_unique<Layers>(load);
    reply << "ready " << layers->bytes_per_expert() << " " << layers->placement();
  } else if (command == "run" && layers) {
    std::string input, output;
    words >> input >> output;
    reply << "seconds";
    for (const double s : layers->run(Inputs(input), output)) reply << " " << s;
  } else {
    throw std::runtime_error("unknown command " + command);
  }
  return reply.str();
}

}  // namespace

int main() {
  ggml_log_set(listen, nullptr);
  std::unique_ptr<Layers> layers;
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::cout << answer(std::istringstream(line), layers) << std::endl;
    } catch (const std::exception& error) {
      std::cout << "error " << error.what() << std::endl;
    }
  }
}
