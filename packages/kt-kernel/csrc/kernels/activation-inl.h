// SPDX-License-Identifier: Apache-2.0
// What stands between the up and the down projection: every Activation as a function of two
// vectors, and the kernel that applies it elementwise. Conversion for gemm is act-inl.h. Textual,
// included inside a target's namespace.

// x * sigmoid(t), one division.
inline Vec::F times_sigmoid(Vec::F x, Vec::F t) {
  return Vec::div(x, Vec::add(Vec::set1(1.0f), exp(Vec::neg(t))));
}

// Operands of min and max stand so that a NaN in x survives.
inline Vec::F at_most(Vec::F x, Vec::F limit) { return Vec::min(limit, x); }
inline Vec::F clamp(Vec::F x, Vec::F limit) {
  return Vec::min(limit, Vec::max(Vec::neg(limit), x));
}

// One struct per ActivationKind; kernels.h states the formulae. Ungated ones ignore `gate`.
struct Silu {
  static constexpr bool kGated = true;
  Vec::F operator()(Vec::F gate, Vec::F up) const {
    return Vec::mul(times_sigmoid(gate, gate), up);
  }
};

struct SiluClamped {
  static constexpr bool kGated = true;
  Vec::F limit;
  Vec::F operator()(Vec::F gate, Vec::F up) const {
    return Silu{}(at_most(gate, limit), clamp(up, limit));
  }
};

struct SiluPostClamped {
  static constexpr bool kGated = true;
  Vec::F limit;
  Vec::F operator()(Vec::F gate, Vec::F up) const {
    return Vec::mul(at_most(times_sigmoid(gate, gate), limit), clamp(up, limit));
  }
};

struct SwigluOai {
  static constexpr bool kGated = true;
  Vec::F limit, alpha;
  Vec::F operator()(Vec::F gate, Vec::F up) const {
    const Vec::F g = at_most(gate, limit);
    return Vec::mul(times_sigmoid(g, Vec::mul(alpha, g)),
                    Vec::add(clamp(up, limit), Vec::set1(1.0f)));
  }
};

struct Gelu {
  static constexpr bool kGated = true;
  Vec::F operator()(Vec::F gate, Vec::F up) const {
    // (1 + tanh z) / 2 = sigmoid(2z) with z = sqrt(2 / pi) * (g + 0.044715 g^3).
    const Vec::F cubic = Vec::fma(Vec::mul(gate, gate), Vec::set1(0.044715f), Vec::set1(1.0f));
    const Vec::F t = Vec::mul(Vec::mul(gate, cubic), Vec::set1(1.5957691216f));
    return Vec::mul(times_sigmoid(gate, t), up);
  }
};

struct Relu2 {
  static constexpr bool kGated = false;
  Vec::F operator()(Vec::F, Vec::F up) const {
    const Vec::F positive = Vec::max(Vec::zero(), up);
    return Vec::mul(positive, positive);
  }
};

// Calls body(f) with the activation's function f(gate, up) -> Vec::F, so that a loop is compiled
// for each instead of choosing anew at every vector.
template <class Body>
inline void with_activation(const Activation& activation, Body&& body) {
  const Vec::F limit = Vec::set1(activation.limit);
  switch (activation.kind) {
    case ActivationKind::silu:
      return body(Silu{});
    case ActivationKind::silu_clamped:
      return body(SiluClamped{limit});
    case ActivationKind::silu_post_clamped:
      return body(SiluPostClamped{limit});
    case ActivationKind::swigluoai:
      return body(SwigluOai{limit, Vec::set1(activation.alpha)});
    case ActivationKind::gelu:
      return body(Gelu{});
    case ActivationKind::relu2:
      return body(Relu2{});
  }
}

inline void activate(const ActivateArgs& args) {
  using E = Element<DType::f32>;
  with_activation(args.activation, [&](auto f) {
    const int columns = static_cast<int>(args.columns.end - args.columns.begin);
    for (int64_t row = args.rows.begin; row < args.rows.end; ++row) {
      const int64_t at = row * args.stride + args.columns.begin;
      for_each_vector(columns, [&](int i, auto lanes) {
        const Vec::F up = load_lanes<E>(args.up + at + i, lanes);
        Vec::F gate = up;
        if constexpr (decltype(f)::kGated) gate = load_lanes<E>(args.gate + at + i, lanes);
        store_lanes<E>(args.out + at + i, f(gate, up), lanes);
      });
    }
  });
}
