// SPDX-License-Identifier: Apache-2.0
// Lets other Python threads run while the core works.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace kt::kvcache {

// The GIL is released for this object's life. A daemon thread that comes back when the interpreter
// has begun to end never gets it again: Python before 3.14 unwinds such a thread's stack, which
// must not leave a destructor. It stops here instead, as in newer Pythons; the process is about to
// end.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) ::pause();
    }
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace kt::kvcache
