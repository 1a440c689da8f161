# SPDX-License-Identifier: Apache-2.0
"""One file per architecture, named by Hugging Face model_type, assembled from blocks on Ops."""
