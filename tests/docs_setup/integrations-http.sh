# SPDX-License-Identifier: Apache-2.0
. "$REPOSITORY/tests/docs_setup/deployment.sh"
upseal admin token > token
