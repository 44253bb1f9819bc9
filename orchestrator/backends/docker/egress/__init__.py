"""The network of boxes whose task allows some hosts: a proxy for each allow-list, and one wire from each box to it."""
