# SPDX-License-Identifier: Apache-2.0
"""What is on disk: configuration files, tensors by name, and which format a matrix is packed to."""
