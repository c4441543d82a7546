# SPDX-License-Identifier: Apache-2.0
"""``python -m upseal`` is the command line."""

import sys

from upseal.cli import main

if __name__ == "__main__":
    sys.exit(main())
