# SPDX-License-Identifier: Apache-2.0
"""The relay: takes bodies from below, keeps them until its parent has receipted, passes them on."""
