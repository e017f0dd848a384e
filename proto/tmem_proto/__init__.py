"""The wire protocol of tmem: the `tmem.v1` messages and services, and the code generated from them."""
