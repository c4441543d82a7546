# SPDX-License-Identifier: Apache-2.0
"""Checks taken away one at a time (scripts/mutations)."""
