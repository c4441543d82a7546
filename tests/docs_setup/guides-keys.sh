# SPDX-License-Identifier: Apache-2.0
. "$REPOSITORY/tests/docs_setup/deployment.sh"
seal
agent web-1
