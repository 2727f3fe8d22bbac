"""Rows and examples as padded batches for the devices."""
