// SPDX-License-Identifier: Apache-2.0
// Lets other Python threads run while C++ works, also past the end of the interpreter. For threads
// that hold the GIL; nothing here takes it for others.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

namespace kt::python {

// The GIL is released for this object's life. Where nanobind's would abort the process: a daemon
// thread that comes back after the interpreter began to end never gets the GIL again, and Python
// before 3.14 ends such a thread by pthread_exit, which unwinds its stack as a foreign exception
// into functions that let none out. Such a thread stops here instead, as newer Pythons have it: the
// process is about to end, and all the thread holds stays valid until then.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // only that unwinding comes here; leaving this block would end the process
      for (;;) ::pause();
    }
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace kt::python
