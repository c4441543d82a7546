# SPDX-License-Identifier: Apache-2.0
"""What the HTTP neighbours share (docs/integrations/http.md): httpx, requests, asgi, wsgi.

`bodies` is what they agree on; `sealing` is the clients', `opening` the servers', and `manifest` is
the policy that follows a deployment. None imports a package that is not ours.
"""
