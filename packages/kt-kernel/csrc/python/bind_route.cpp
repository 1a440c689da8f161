// SPDX-License-Identifier: Apache-2.0
// Router by its names and numbers, and the rules of one route op's arrays. The op is bound with the
// others in bind_stream.cpp.
#include <nanobind/stl/string.h>

#include <cmath>
#include <initializer_list>
#include <string>
#include <utility>

#include "bindings.h"
#include "kt/check.h"

namespace kt::python {

using namespace nb::literals;

namespace {

// The value that `name` stands for in `known`, as `argument` of a Router.
template <class Value>
Value named(const char* argument, const std::string& name,
            std::initializer_list<std::pair<const char*, Value>> known) {
  std::string names;
  for (const auto& [each, value] : known) {
    if (name == each) return value;
    names += (names.empty() ? "" : ", ") + std::string(each);
  }
  fail("router", argument, " must be one of ", names, "; got ", name);
}

Router make_router(const std::string& score, const std::string& select_on, int num_groups,
                   int topk_groups, const std::string& group_score, const std::string& norm,
                   float norm_eps, float scale, float jitter_eps) {
  const char* op = "router";
  const Router router{
      named<Score>("score", score,
                   {{"softmax", Score::softmax},
                    {"sigmoid", Score::sigmoid},
                    {"sqrtsoftplus", Score::sqrtsoftplus},
                    {"sparsemixer", Score::sparsemixer}}),
      named<SelectOn>(
          "select_on", select_on,
          {{"score", SelectOn::score}, {"logit", SelectOn::logit}, {"hash", SelectOn::hash}}),
      num_groups,
      topk_groups,
      named<GroupScore>("group_score", group_score,
                        {{"max", GroupScore::max}, {"top2_sum", GroupScore::top2_sum}}),
      named<Norm>("norm", norm, {{"none", Norm::none}, {"sum", Norm::sum}, {"clamp", Norm::clamp}}),
      norm_eps,
      scale,
      jitter_eps};
  KT_CHECK(op, router.score != Score::sparsemixer || router.select_on == SelectOn::logit,
           "select_on must be logit for sparsemixer; got ", select_on);
  KT_CHECK(op, num_groups >= 1, "num_groups must be at least 1; got ", num_groups);
  KT_CHECK(op, router.select_on != SelectOn::hash || num_groups == 1,
           "num_groups must be 1 for hash; got ", num_groups);
  KT_CHECK(op, topk_groups >= 1 && topk_groups <= num_groups, "topk_groups must lie in [1, ",
           num_groups, "]; got ", topk_groups);
  KT_CHECK(op, std::isfinite(norm_eps) && norm_eps >= 0,
           "norm_eps must be finite and not negative; got ", norm_eps);
  KT_CHECK(op, std::isfinite(scale), "scale must be finite; got ", scale);
  KT_CHECK(op, std::isfinite(jitter_eps) && jitter_eps >= 0,
           "jitter_eps must be finite and not negative; got ", jitter_eps);
  return router;
}

constexpr const char* kOp = "route";

}  // namespace

RouteArrays::RouteArrays(nb::handle logits, nb::handle topk_ids, nb::handle topk_weights,
                         const Router& router, nb::handle bias, nb::handle input_ids,
                         nb::handle hash_table)
    : logits_(kOp, "logits", logits, Element::float32, {"num_tokens", "num_experts"}),
      topk_ids_(kOp, "topk_ids", topk_ids, Element::int32, {logits_.dim(0), "top_k"},
                Access::write),
      topk_weights_(kOp, "topk_weights", topk_weights, Element::float32,
                    {logits_.dim(0), topk_ids_.dim(1)}, Access::write) {
  const int experts = logits_.dim(1), top_k = topk_ids_.dim(1);
  const bool hash = router.select_on == SelectOn::hash;
  KT_CHECK(kOp, experts >= 1 && experts <= kMaxRoutedExperts, "num_experts must lie in [1, ",
           kMaxRoutedExperts, "]; got ", experts);
  KT_CHECK(kOp, experts % router.num_groups == 0, "num_groups must divide num_experts ", experts,
           "; got ", router.num_groups);
  const int eligible = experts / router.num_groups * router.topk_groups;
  KT_CHECK(kOp, top_k >= 1 && top_k <= eligible, "top_k must lie in [1, ", eligible, "]; got ",
           top_k);
  const auto check_given = [&](const char* name, nb::handle value, bool wanted) {
    KT_CHECK(kOp, value.is_none() != wanted, name, " must be ", wanted ? "an array" : "None",
             hash ? " for hash" : " unless select_on is hash", "; got ", wanted ? "None" : "one");
  };
  check_given("input_ids", input_ids, hash);
  check_given("hash_table", hash_table, hash);
  if (hash) {
    check_given("bias", bias, false);
    input_ids_.emplace(kOp, "input_ids", input_ids, Element::int32,
                       std::initializer_list<Axis>{logits_.dim(0)});
    hash_table_.emplace(kOp, "hash_table", hash_table, Element::int32,
                        std::initializer_list<Axis>{"vocab_size", top_k});
  } else if (!bias.is_none()) {
    bias_.emplace(kOp, "bias", bias, Element::float32, std::initializer_list<Axis>{experts});
  }
  const auto pointer = [](const std::optional<Array>& array) { return array ? &*array : nullptr; };
  for (const Array* written : {&topk_ids_, &topk_weights_})
    check_disjoint(kOp, *written,
                   {&logits_, pointer(bias_), pointer(input_ids_), pointer(hash_table_)});
  check_disjoint(kOp, topk_ids_, {&topk_weights_});
  args_ = {logits_.read<float>(),
           bias_ ? bias_->read<float>() : nullptr,
           input_ids_ ? input_ids_->read<int32_t>() : nullptr,
           hash_table_ ? hash_table_->read<int32_t>() : nullptr,
           hash_table_ ? hash_table_->dim(0) : 0,
           router,
           experts,
           top_k,
           topk_ids_.write<int32_t>(),
           topk_weights_.write<float>(),
           {}};
}

std::vector<nb::ndarray<nb::ro>> RouteArrays::references() const {
  std::vector<nb::ndarray<nb::ro>> all{logits_.reference(), topk_ids_.reference(),
                                       topk_weights_.reference()};
  for (const auto* array : {&bias_, &input_ids_, &hash_table_})
    if (*array) all.push_back((*array)->reference());
  return all;
}

void bind_route(nb::module_& m) {
  nb::class_<Router>(m, "Router", "How experts and weights follow from router logits.")
      .def(nb::new_(&make_router), "score"_a, "select_on"_a, "num_groups"_a, "topk_groups"_a,
           "group_score"_a, "norm"_a, "norm_eps"_a, "scale"_a, "jitter_eps"_a);
}

}  // namespace kt::python
