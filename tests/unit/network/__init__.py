"""Tests of `qvmi.network`, beside tcpdump."""
