// SPDX-License-Identifier: Apache-2.0
// The active kernel table: the best this machine can run, or the one named by KT_ISA or
// force_target().
#include "kt/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <mutex>

#include "kt/check.h"
#include "kt/isa.h"
#include "negate.h"
#include "targets/targets.h"

namespace kt {
namespace {

struct Target {
  const Kernels* table;
  bool supported;
  bool emulated = false;  // never chosen but by name
};

// Best first, by what was measured and, where no machine was at hand, by the work per instruction
// (ARCHITECTURE.md); emulated ones last. A new target is one line here and one in targets.h.
const std::vector<Target>& targets() {
  static const std::vector<Target> all = {
#if defined(__x86_64__)
      {&amx_kernels(), cpu_features().amx},
      {&avx512_bf16_kernels(), cpu_features().avx512_bf16},
      {&avx512_vnni_kernels(), cpu_features().avx512_vnni},
      {&avx512_kernels(), cpu_features().avx512},
      {&avx_vnni_kernels(), cpu_features().avx_vnni},
      {&avx2_kernels(), cpu_features().avx2_fma_f16c},
#endif
      {&scalar_kernels(), true},
#if defined(__x86_64__)
      {&amx_emu_kernels(), cpu_features().avx2_fma_f16c, true},
#endif
  };
  return all;
}

std::vector<std::string> names(bool supported_only) {
  std::vector<std::string> found;
  for (const Target& target : targets())
    if (target.supported || !supported_only) found.push_back(target.table->target);
  return found;
}

const Kernels& find(const char* op, const std::string& name) {
  std::string available;
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    if (name == target.table->target) return *target.table;
    available += (available.empty() ? "" : ", ") + std::string(target.table->target);
  }
  fail(op, "target must be one of ", available, " on this machine; got ", name);
}

const Kernels& initial() {
  const char* name = std::getenv("KT_ISA");
  if (name != nullptr && *name != '\0') return find("KT_ISA", name);
  for (const Target& target : targets())
    if (target.supported) return *target.table;
  return scalar_kernels();
}

std::string joined_kernel_names() {
  std::string joined;
  for (const std::string& name : kernel_names()) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

using AnyKernel = void (*)();  // compared, never called

AnyKernel find_kernel(const Kernels& table, const std::string& kernel) {
#define KT_FIND(name, Args) \
  if (kernel == #name) return reinterpret_cast<AnyKernel>(table.name);
  KT_KERNELS(KT_FIND)
#undef KT_FIND
#define KT_FIND(name, Struct)                                                       \
  if (kernel == "gemm_" #name)                                                      \
    return reinterpret_cast<AnyKernel>(table.gemm[static_cast<int>(Format::name)]); \
  if (kernel == "pack_" #name)                                                      \
    return reinterpret_cast<AnyKernel>(table.pack[static_cast<int>(Format::name)]);
  KT_FORMATS(KT_FIND)
#undef KT_FIND
  fail("isa.matrix", "kernel must be one of ", joined_kernel_names(), "; got ", kernel);
}

std::mutex g_mutex;  // guards the three below; readers only load g_active
std::atomic<const Kernels*> g_active{nullptr};
const Kernels* g_chosen = nullptr;  // without fault injection
Kernels g_faulty;                   // g_chosen with one kernel negated
std::string g_negated;              // its name, or empty

const Kernels& chosen() {
  if (g_chosen == nullptr) g_chosen = &initial();
  return *g_chosen;
}

void activate() {
  if (!g_negated.empty()) negated_copy(chosen(), g_negated, &g_faulty);
  g_active.store(g_negated.empty() ? &chosen() : &g_faulty, std::memory_order_release);
}

}  // namespace

const Kernels& kernels() {
  if (const Kernels* active = g_active.load(std::memory_order_acquire)) return *active;
  const std::lock_guard lock(g_mutex);
  activate();
  return *g_active.load(std::memory_order_relaxed);
}

std::vector<std::string> kernel_names() {
#define KT_NAME(kernel, Args) #kernel,
  std::vector<std::string> names{KT_KERNELS(KT_NAME)};
#undef KT_NAME
  for (int i = 0; i < kNumFormats; ++i) {
    const std::string format = info(static_cast<Format>(i)).name;
    names.push_back("gemm_" + format);
    names.push_back("pack_" + format);
  }
  return names;
}

std::vector<std::string> available_targets() { return names(true); }
std::vector<std::string> compiled_targets() { return names(false); }

std::string kernel_owner(const std::string& target, const std::string& kernel) {
  const Kernels* table = nullptr;
  for (const Target& each : targets())
    if (target == each.table->target) table = each.table;
  KT_CHECK("isa.matrix", table != nullptr, "target must be a compiled one; got ", target);
  const AnyKernel entry = find_kernel(*table, kernel);
  if (entry == nullptr) return "";
  // Best first: a better target shares the kernels of a lesser one, so the last that has it wrote
  // it. Emulated ones, last, share as well.
  std::string owner;
  for (const Target& each : targets())
    if (find_kernel(*each.table, kernel) == entry && (!each.emulated || owner.empty()))
      owner = each.table->target;
  return owner;
}

void force_target(const std::string& name) {
  const std::lock_guard lock(g_mutex);
  g_chosen = &find("isa.force", name);
  activate();
}

void negate_kernel(const std::string& kernel) {
  const std::lock_guard lock(g_mutex);
  Kernels scratch;
  KT_CHECK("isa.negate_kernel", kernel.empty() || negated_copy(chosen(), kernel, &scratch),
           "kernel must be one of ", joined_kernel_names(), ", or empty; got ", kernel);
  g_negated = kernel;
  activate();
}

}  // namespace kt
