"""Version 1 of the protocol: pages in `tmem_pb2`, care of a store in `admin_pb2`. Generated: `make proto`."""
