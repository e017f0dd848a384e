"""The wire protocol of tmem: `tmem.v1` with the code generated from it, and how people write the protocol's values."""
