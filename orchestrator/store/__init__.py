"""The record: bindings, calls, evidence, rewards, blobs."""
