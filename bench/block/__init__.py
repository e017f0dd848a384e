"""The block front and the SAN gateway, measured."""
