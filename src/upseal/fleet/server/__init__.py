# SPDX-License-Identifier: Apache-2.0
"""The server: takes units, verifies them, stores them once, and gives receipts."""
