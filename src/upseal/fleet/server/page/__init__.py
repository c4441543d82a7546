# SPDX-License-Identifier: Apache-2.0
"""The administrator's page: what ``upseal admin`` prints, to look at. It changes nothing.

routes        what is served, and to whom
sessions      who is logged in
fields        what a request to log in carries
passwords     logging in: one at a time, and slower after failures
facts         what there is to show, gathered and kept for a moment
asking        what a request asks for: filter, order, part, time
chart         the charts, as SVG
rendering     templates and assets
"""
