"""Tests of `qvmi.disk`, on images made by the tools of e2fsprogs, QEMU and util-linux."""
