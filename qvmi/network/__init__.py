"""What the bytes on a virtual network card mean: captures, packets, names and flows.

Whoever is on the network has written every byte of it. What is no whole packet of a kind that is known is
counted and passed over.
"""
