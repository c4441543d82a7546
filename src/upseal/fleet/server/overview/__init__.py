# SPDX-License-Identifier: Apache-2.0
"""What an administrator sees, gathered from the database and the manifest together.

``upseal admin`` prints it, the server's page shows it. Nothing here changes anything, and nothing
that grows with the clients is read whole, unless the caller asks for the whole listing.

alarms        who they are about
people        clients and relays as they stand in the database
orphans       who must seal and cannot
census        what each client does, by the manifest as well: counted, and listed by the page
holders       who has proven the key in question
oldkeys       the keys in force, and how far old ones have drained
relays        those of the manifest, and those that wait to be let in
duties        what is to be done, and by which command
"""
