# SPDX-License-Identifier: Apache-2.0
"""What the administrator of a deployment does: the one who holds the signing key and the CA.

`deployment.Deployment` is the way in; the command line only prints what it says.
"""
