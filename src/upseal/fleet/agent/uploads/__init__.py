# SPDX-License-Identifier: Apache-2.0
"""Whole files of an agent: sealed once, kept until the server has answered for them."""
