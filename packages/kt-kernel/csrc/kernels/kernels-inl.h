// SPDX-License-Identifier: Apache-2.0
// Every kernel, included inside a target's namespace and compiler region after its `Vec`. Textual:
// it opens no namespace and includes no standard header (the target did), because those must not be
// compiled for the target.
#include "kernels/element-inl.h"
#include "kernels/vectors-inl.h"
#include "kernels/act-inl.h"
#include "kernels/activation-inl.h"
#include "formats/formats-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/combine-inl.h"
#include "kernels/embedding-inl.h"
#include "kernels/norm-inl.h"
#include "kernels/kv-inl.h"
#include "kernels/rope-inl.h"
#include "kernels/attention-tile-inl.h"
#include "kernels/attention-inl.h"
#include "kernels/route-inl.h"
