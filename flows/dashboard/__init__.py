"""The dashboard: one page over a workspace's files. It reads, never writes, and keeps nothing of its own."""

PORT = 4280  # of its page, where no other is asked for
