"""The embedded Redis: a private server of this user, shared by all that run on this machine without a Redis URL.

Nodes start it or join it (`join`), helpers find it (`find`), and it ends with the last node. It listens on a unix
socket in a folder that only this user can enter, and keeps nothing on disk.
"""
