// SPDX-License-Identifier: Apache-2.0
// An Activation from its name and numbers. Which numbers make sense for which name is checked
// where Python builds one (kt_kernel/activation.py); none of them can break a kernel.
#include "bindings.h"
#include "kt/check.h"

namespace kt::python {

Activation activation_from(const char* op, const std::string& kind, float limit, float alpha) {
  static constexpr std::pair<const char*, ActivationKind> kKinds[] = {
      {"silu", ActivationKind::silu},
      {"silu_clamped", ActivationKind::silu_clamped},
      {"silu_post_clamped", ActivationKind::silu_post_clamped},
      {"swigluoai", ActivationKind::swigluoai},
      {"gelu", ActivationKind::gelu},
      {"relu2", ActivationKind::relu2},
  };
  for (const auto& [name, value] : kKinds)
    if (kind == name) return {value, limit, alpha};
  fail(op, "activation must be one that Activation names; got ", kind);
}

}  // namespace kt::python
