# SPDX-License-Identifier: Apache-2.0
"""Keys, sessions, reports and uploads: what the public names are made of."""
