"""The pictures of README and the documents: drawn by a script, so that they can be changed and never go stale."""
