# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# For the scripts that build with sanitizers, from the top of the repository: sourced, not run.

# Where the sanitizers learn what uninstrumented libraries do, and the linker's options for that.
watch=native/tests/sanitizers/libraries.c
mapfile -t wraps < <(sed -n 's/^WRAP([^,]*, \([A-Za-z0-9_]*\),.*/-Wl,--wrap=\1/p' "$watch")

# Sets `library` and `headers` to ippcp's, or to nothing where it is not installed.
find_ippcp() { # python
    local found
    found=$("$1" -c '
import sys
sys.path.insert(0, "native")
import build_ffi
print(*build_ffi.ippcp() or ())')
    read -r library headers <<<"$found"
}
