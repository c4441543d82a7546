# SPDX-License-Identifier: Apache-2.0
"""Builds the C core; where that cannot be done, leaves it out and says so once."""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

# Windows has no libcrypto that a wheel may load: docs/releasing.md.
BUILD = os.environ.get("UPSEAL_BUILD") or ("portable" if sys.platform == "win32" else "")


class BuildOrGoWithout(build_ext):
    """A missing compiler or library makes a portable installation, unless UPSEAL_BUILD=native."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as error:
            if BUILD == "native":
                raise
            self.warn(
                f"upseal: the C core was not built ({error}), so the portable engine is used. For"
                " the fast one: apt-get install gcc libssl-dev; pip install --no-cache-dir -I ."
            )
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)  # an earlier build's
            self.extensions.remove(ext)
            self.get_finalized_command("bdist_wheel").root_is_pure = True  # the tag: any machine


# cffi drops the limited API by itself on free-threaded builds; the tag must follow.
ABI3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}
setup(
    cffi_modules=[] if BUILD == "portable" else ["native/build_ffi.py:ffi"],
    cmdclass={"build_ext": BuildOrGoWithout},
    options={} if BUILD == "portable" else {"bdist_wheel": ABI3},
)
