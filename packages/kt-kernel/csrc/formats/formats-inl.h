// SPDX-License-Identifier: Apache-2.0
// Every weight format. Textual, included inside a target's namespace after its `Vec` and
// kernels/element-inl.h.
#include "formats/panels-inl.h"
#include "formats/floats-inl.h"
#include "formats/integers-inl.h"
#include "formats/gguf-inl.h"
#include "formats/k_quants-inl.h"
#include "formats/mxfp4-inl.h"
