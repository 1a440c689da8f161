# SPDX-License-Identifier: Apache-2.0
"""Whether this installation has the compiled core, kt_kvcache._core; each of its parts has a twin
in Python that says what it does and stands in for it.
"""

from importlib.util import find_spec

# A core that is there and cannot be imported is broken: that is an error, not a missing core.
HAS_CORE = find_spec("kt_kvcache._core") is not None
