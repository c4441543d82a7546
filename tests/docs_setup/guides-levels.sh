# SPDX-License-Identifier: Apache-2.0
. "$REPOSITORY/tests/docs_setup/deployment.sh"
agent web-1
agent old-1 --level none
