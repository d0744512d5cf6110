"""The write pipeline: record types, the group commit, the fast path."""
