# SPDX-License-Identifier: Apache-2.0
"""Builds the C core; where that cannot be done, leaves it out and says so once."""

import os
import sysconfig

from setuptools import setup
from setuptools.command.build_ext import build_ext

PORTABLE = os.environ.get("UPSEAL_BUILD") == "portable"


class BuildOrGoWithout(build_ext):
    """A missing compiler or library makes a portable installation, unless UPSEAL_BUILD=native."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as error:
            if os.environ.get("UPSEAL_BUILD") == "native":
                raise
            self.warn(
                f"upseal: the C core was not built ({error}); the portable engine will be used. "
                "For the fast one install a C compiler and OpenSSL's headers "
                "(Debian: apt-get install gcc libssl-dev) and install upseal again."
            )
            ext.optional, ext.sources = True, []
            self.extensions = [e for e in self.extensions if e is not ext]


# cffi drops the limited API by itself on free-threaded builds; the tag must follow.
ABI3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}

setup(
    cffi_modules=[] if PORTABLE else ["native/build_ffi.py:ffi"],
    cmdclass={"build_ext": BuildOrGoWithout},
    options={} if PORTABLE else {"bdist_wheel": ABI3},
    zip_safe=False,
)
