"""Owners of rollouts: leases, admission, boxes, sweeping."""
