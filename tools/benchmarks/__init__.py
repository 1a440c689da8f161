# SPDX-License-Identifier: Apache-2.0
"""asv benchmarks of the four packages: bench_<package>_<area>.py. No assertions of speed."""
